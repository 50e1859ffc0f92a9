"""Serving: what the adapters inside the server share, the onnxruntime backend, and the launcher of the server."""
