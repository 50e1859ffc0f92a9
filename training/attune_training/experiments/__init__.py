"""The paper's Tables I and II, run with one command each and compared with the paper's own figures."""
