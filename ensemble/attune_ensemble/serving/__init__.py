"""Serving: what each model serves, what the adapters inside the server share, the onnxruntime backend, the launcher of
the server, and the models in one process without it.
"""
