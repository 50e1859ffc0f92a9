"""Outside the server: `attune serve`, the preparation of the packaged tritonserver, its start and its shutdown."""
