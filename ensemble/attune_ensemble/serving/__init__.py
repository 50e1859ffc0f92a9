"""The serving room: the launcher of the packaged tritonserver, its onnxruntime backend, and what adapters share."""
