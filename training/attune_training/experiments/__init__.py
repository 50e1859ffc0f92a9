"""The paper's Tables I and II, run with one command each and set beside the paper's own figures."""
