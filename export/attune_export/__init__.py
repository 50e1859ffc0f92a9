"""Merging of adapters, ONNX export, the knowledge-base index, and assembly of the model repository."""
