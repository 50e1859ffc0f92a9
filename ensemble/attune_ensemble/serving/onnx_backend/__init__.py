"""The folder that stands in for the native onnxruntime backend: Triton runs the `model.py` in it."""
