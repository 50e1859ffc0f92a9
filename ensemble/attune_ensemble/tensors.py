"""A model's tensors by name, and small conversions between BYTES tensors and text."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import InvalidRequest

Tensors = dict[str, npt.NDArray[Any]]
"""Tensors by name."""


def text_of(tensor: npt.NDArray[Any]) -> str:
    """The first element of a BYTES tensor as text; `InvalidRequest` if it is not UTF-8."""
    return decode(tensor.flat[0])


def decode(value: bytes | str) -> str:
    """One element of a BYTES tensor as text; `InvalidRequest` if it is not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InvalidRequest("a text input is not UTF-8") from error


def bytes_tensor(*texts: str) -> npt.NDArray[np.object_]:
    """A BYTES tensor [N] of N texts."""
    return np.array([text.encode() for text in texts], dtype=np.object_)
