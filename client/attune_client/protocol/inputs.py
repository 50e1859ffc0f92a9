"""Whether a request's tensors are those that its model declares, checked wherever a request comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import printable, quote
from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.models import INTERNAL_INPUTS
from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec

__all__ = ["check_inputs"]


def check_inputs(model: ModelSpec, values: Mapping[str, Any]) -> None:
    """Raise `InvalidOption` for an input that the model does not declare, that is missing, or whose type or shape is
    another, and for rows that are more than a batch holds or not as many in every input.

    What the server's own processes fill is none of a client's inputs.
    """
    declared = {tensor.name: tensor for tensor in model.inputs if tensor not in INTERNAL_INPUTS}
    for name, value in values.items():
        if name not in declared:
            raise InvalidOption(f"{model.name} has no input {quote(name)}; it has {', '.join(declared)}")
        _check_array(model, declared[name], value)
    missing = [name for name, tensor in declared.items() if not tensor.optional and name not in values]
    if missing:
        raise InvalidOption(f"{model.name} needs the input {missing[0]}")
    if model.max_batch_size:
        _check_rows(model, {len(value) for value in values.values()})


def _check_array(model: ModelSpec, spec: TensorSpec, value: Any) -> None:
    dtype = np.dtype(spec.dtype.numpy)
    shape = (*([-1] if model.max_batch_size else []), *spec.shape)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or not _fits(value.shape, shape):
        raise InvalidOption(f"{model.name}: input {spec.name} must be an array {shape} of {dtype}, not {quote(value)}")
    if spec.dtype is DType.BYTES:
        _check_texts(model, spec, value)


def _check_texts(model: ModelSpec, spec: TensorSpec, values: npt.NDArray[np.object_]) -> None:
    for item in values.flat:
        if not isinstance(item, bytes | str):
            raise InvalidOption(f"{model.name}: input {spec.name} must hold bytes or str")
        try:
            _ = item.encode() if isinstance(item, str) else item
        except UnicodeEncodeError as error:  # half a character
            raise InvalidOption(f"{model.name}: input {spec.name} cannot be sent: {printable(str(error))}") from error


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


def _check_rows(model: ModelSpec, rows: set[int]) -> None:
    if len(rows) > 1:
        raise InvalidOption(f"{model.name}: its inputs must have equally many rows, not {sorted(rows)}")
    if not 1 <= min(rows) <= model.max_batch_size:
        raise InvalidOption(f"{model.name} takes 1 to {model.max_batch_size} rows at once, not {min(rows)}")
