"""From what a model is handed, and what its function returns, to the tensors that it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import ServerError
from attune_client.protocol.tensors import ModelSpec, Tensors, TensorSpec

__all__ = ["Outputs", "declared_array", "declared_outputs", "require_sound"]

Outputs = Mapping[str, npt.ArrayLike]
"""The tensors of a response by name; a number, str or bytes stands for a tensor of one element."""


def declared_outputs(model: ModelSpec, outputs: Outputs) -> Tensors:
    """The outputs in their declared types; `ServerError` for values that are no numbers, or beyond their limits."""
    tensors = {name: declared_array(model.output(name), value) for name, value in outputs.items()}
    require_sound(model, tensors)
    return tensors


def declared_array(spec: TensorSpec, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """The value in the declared type; a scalar becomes [1]."""
    return np.ascontiguousarray(np.asarray(value, dtype=spec.dtype.numpy))


def require_sound(model: ModelSpec, outputs: Tensors) -> None:
    """Raise `ServerError` for outputs with values that are no numbers, or that the declaration rules out."""
    for name, array in outputs.items():
        if fault := model.output(name).fault(array):
            raise ServerError(f"{model.name} failed: {fault}")
