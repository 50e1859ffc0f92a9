"""The vocabulary of the protocol: element types, tensors and models, as small frozen objects; and BYTES as text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import InvalidRequest

Tensors = dict[str, npt.NDArray[Any]]
"""Tensors by name."""


class DType(StrEnum):
    """Element type of a tensor, by the name that the KServe v2 protocol gives it."""

    FP32 = "FP32"
    INT32 = "INT32"
    INT64 = "INT64"
    BYTES = "BYTES"

    @property
    def numpy(self) -> type[np.generic]:
        """The numpy scalar type that carries it (BYTES travel as objects)."""
        return _NUMPY[self]


_NUMPY: dict[DType, type[np.generic]] = {
    DType.FP32: np.float32,
    DType.INT32: np.int32,
    DType.INT64: np.int64,
    DType.BYTES: np.object_,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One public tensor: its name, element type and shape.

    `shape` leaves out the batch dimension of a model that batches; -1 marks a dimension of any size. `limits` are the
    smallest and the greatest value that an output may have. `max_shape` is the largest size of each dimension that a
    client may send, empty where there is none of any size; `max_bytes` that of an element of BYTES.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    doc: str = ""
    optional: bool = False
    limits: tuple[float, float] | None = None
    max_shape: tuple[int, ...] = ()
    max_bytes: int | None = None

    def fault(self, values: npt.NDArray[Any]) -> str | None:
        """What is wrong with the values of an output, in words; None if all are numbers within the limits."""
        if self.dtype is not DType.FP32 or not values.size:
            return None
        if not np.isfinite(values).all():
            return f"{self.name} holds values that are not finite"
        low, high = self.limits or (-np.inf, np.inf)
        if values.min() < low - _ROUNDING or values.max() > high + _ROUNDING:
            return f"{self.name} holds values outside {low:g}..{high:g}"
        return None


_ROUNDING = 1e-3
"""By how much a value may pass a limit: half precision rounds."""


@dataclass(frozen=True, slots=True)
class Callee:
    """A model that another one calls by itself while it works; as text, in configurations, `name unless input input`.

    `unless` are inputs of the caller: a request that has one of them is answered without this call. Whatever it calls
    all the same is given that input under the same name, so that the rules of its callees hold for theirs as well.
    """

    name: str
    unless: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The callee of that text."""
        name, _, unless = text.partition(_UNLESS)
        return cls(name, tuple(unless.split()))

    def __str__(self) -> str:
        return f"{self.name}{_UNLESS}{' '.join(self.unless)}" if self.unless else self.name

    def is_called_for(self, given: Collection[str]) -> bool:
        """Whether a request with these inputs, by name, may need it."""
        return not any(name in given for name in self.unless)


_UNLESS = " unless "


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model: what goes in, what comes out, and how it is called.

    `max_batch_size` 0 means that the model takes one request at a time and no batch dimension;
    `decoupled` means that one request is answered by a stream of responses.

    `steps` make it an ensemble: the models that it runs, in an order in which each finds its inputs. A tensor keeps its
    name all the way through, from the ensemble's inputs over the steps' own to its outputs.

    `calls` are the models that it calls by itself while it works, and `calls_streaming` those of them that a stream
    still needs after its first response.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    decoupled: bool = False
    steps: tuple[ModelSpec, ...] = ()
    calls: tuple[Callee, ...] = ()
    calls_streaming: tuple[Callee, ...] = ()

    def input(self, name: str) -> TensorSpec:
        """The input of that name; KeyError if there is none."""
        return _named(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output of that name; KeyError if there is none."""
        return _named(self.outputs, name)


def _named(tensors: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(name)


# --- BYTES tensors ---


def bytes_tensor(*values: str | bytes) -> npt.NDArray[np.object_]:
    """A BYTES tensor [N] of N texts or encoded files."""
    return np.array([value.encode() if isinstance(value, str) else value for value in values], dtype=np.object_)


def text_of(tensor: npt.NDArray[Any]) -> str:
    """The first element of a BYTES tensor as text; `InvalidRequest` if it is not UTF-8."""
    return decode(tensor.flat[0])


def decode(value: bytes | str) -> str:
    """One element of a BYTES tensor as text; `InvalidRequest` if it is not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InvalidRequest("a text is not UTF-8") from error
