"""Merging, ONNX export, the knowledge-base index, and assembling the model repository."""
