"""Reading Whisper's encoder from CTranslate2's format, with transformers' parameter names.

Speech-to-text uses the same files, so one download serves both.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["read_whisper_encoder"]

_FILE = "model.bin"
_VERSION = 6
# In the order of CTranslate2's enumeration of data types.
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_ENCODER = "encoder/"

_RENAMES = (
    ("position_encodings/encodings", "embed_positions.weight"),
    ("layer_norm/gamma", "layer_norm.weight"),
    ("layer_norm/beta", "layer_norm.bias"),
    ("self_attention/layer_norm", "self_attn_layer_norm"),
    ("ffn/layer_norm", "final_layer_norm"),
    ("self_attention/linear_0", "self_attn.qkv_proj"),
    ("self_attention/linear_1", "self_attn.out_proj"),
    ("ffn/linear_0", "fc1"),
    ("ffn/linear_1", "fc2"),
    ("/", "."),
)


def read_whisper_encoder(folder: Path) -> dict[str, Tensor]:
    """Return the encoder's weights, float32, under the names of transformers' `WhisperEncoder`.

    Args:
        folder: a Whisper model in CTranslate2's format, with float32 or float16 weights.

    Raises:
        ValueError: the folder holds no such model.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {_FILE}; a folder of Whisper in CTranslate2's format was expected")
    try:
        with path.open("rb") as file:
            variables = _read_variables(file)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a model of CTranslate2: {error}") from error
    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        if not name.startswith(_ENCODER) or not np.issubdtype(value.dtype, np.floating):
            continue  # the decoder, and integers such as the number of heads
        renamed = _renamed(name.removeprefix(_ENCODER))
        state.update(_unfused(renamed, torch.from_numpy(value.astype(np.float32))))
    return state


def _read_variables(file: BinaryIO) -> dict[str, npt.NDArray[np.generic]]:
    """Read CTranslate2's file: variables as name, shape, dtype and bytes, then aliases."""
    version = _unpack(file, "I")
    if version != _VERSION:
        raise ValueError(f"its format is version {version}; version {_VERSION} is known here")
    _read_text(file)  # the kind of model
    _unpack(file, "I")  # its revision
    variables = {}
    for _ in range(_unpack(file, "I")):
        name = _read_text(file)
        shape = [_unpack(file, "I") for _ in range(_unpack(file, "B"))]
        kind = _unpack(file, "B")
        size = _unpack(file, "I")
        if kind >= len(_DTYPES):
            raise ValueError(f"{name} has the unknown data type {kind}")
        variables[name] = np.frombuffer(file.read(size), _DTYPES[kind]).reshape(shape)
    for _ in range(_unpack(file, "I")):
        alias = _read_text(file)
        variables[alias] = variables[_read_text(file)]
    return variables


def _unpack(file: BinaryIO, kind: str) -> int:
    layout = struct.Struct("<" + kind)
    value: int = layout.unpack(file.read(layout.size))[0]
    return value


def _read_text(file: BinaryIO) -> str:
    """Read a length-prefixed, zero-terminated string."""
    return file.read(_unpack(file, "H")).rstrip(b"\0").decode()


def _unfused(name: str, value: Tensor) -> dict[str, Tensor]:
    """Split the fused projection of queries, keys and values; Whisper's key projection has no bias."""
    if ".qkv_proj." not in name:
        return {name: value}
    parts = dict(zip("qkv", value.chunk(3), strict=True))
    if name.endswith(".bias"):
        del parts["k"]
    return {name.replace(".qkv_proj.", f".{part}_proj."): weight for part, weight in parts.items()}


def _renamed(name: str) -> str:
    name = re.sub(r"^layer_(\d+)", r"layers.\1", name)
    for theirs, ours in _RENAMES:
        name = name.replace(theirs, ours)
    return name
