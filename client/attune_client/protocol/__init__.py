"""The ground floor: names, element types and shapes of every public tensor, and the errors.

Everything else in Attune stands on this package; it imports nothing but numpy.
"""

from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec

__all__ = ["DType", "ModelSpec", "TensorSpec"]
