"""Outside the server: `attune serve`, what the packaged tritonserver needs in order to start, and its end."""
