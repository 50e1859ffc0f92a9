"""Between the protocol's tensors and tritonclient's messages; shared by both clients."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferResult
from tritonclient.utils import InferenceServerException

from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_client.protocol.models import MAX_MUSIC_S, MIN_MUSIC_S
from attune_client.protocol.tensors import ModelSpec

AudioSource = bytes | str | os.PathLike[str]
"""An encoded recording, or the path of one."""

Tensors = dict[str, npt.NDArray[Any]]

_BY_STATUS: dict[str, type[AttuneError]] = {
    "StatusCode.UNAVAILABLE": ServerUnavailable,
    "StatusCode.DEADLINE_EXCEEDED": RequestTimeout,
    "StatusCode.CANCELLED": RequestCancelled,
}


def audio_tensor(audio: AudioSource) -> npt.NDArray[np.object_]:
    """The recording as a BYTES tensor [1]; OSError when a path cannot be read."""
    return bytes_tensor(audio if isinstance(audio, bytes) else Path(audio).read_bytes())


def bytes_tensor(value: bytes | str) -> npt.NDArray[np.object_]:
    """A BYTES tensor [1]."""
    return np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_)


def therapy_inputs(audio: AudioSource, duration_s: float | None, seed: int | None, engine: str | None) -> Tensors:
    """The inputs of `music_therapy`; raises `InvalidOption` for a length or seed out of range."""
    options: Tensors = {"audio": audio_tensor(audio)}
    if duration_s is not None:
        if not MIN_MUSIC_S <= duration_s <= MAX_MUSIC_S:
            raise InvalidOption(f"duration_s must lie between {MIN_MUSIC_S:g} and {MAX_MUSIC_S:g}, not {duration_s}")
        options["duration_s"] = np.array([duration_s], np.float32)
    if seed is not None:
        if not 0 <= seed < 2**63:
            raise InvalidOption(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}")
        options["seed"] = np.array([seed], np.int64)
    if engine is not None:
        options["engine"] = bytes_tensor(engine)
    return options


def infer_inputs(model: ModelSpec, values: Mapping[str, npt.NDArray[Any]]) -> list[InferInput]:
    """The request's inputs; a tensor that the model does not declare is a KeyError."""
    inputs = []
    for name, value in values.items():
        tensor = InferInput(name, list(value.shape), model.input(name).dtype.value)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return inputs


def read_outputs(result: InferResult) -> Tensors:
    """Every tensor that a response carries, by name."""
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def is_final(result: InferResult) -> bool:
    """Whether this response ends its stream."""
    parameters = result.get_response().parameters
    return "triton_final_response" in parameters and bool(parameters["triton_final_response"].bool_param)


def translate(error: InferenceServerException, url: str) -> AttuneError:
    """The error of our own tree for one of tritonclient's."""
    told = from_wire(error.message())
    if type(told) is not ServerError:  # the server's own words say more than a status
        return told
    kind = _BY_STATUS.get(error.status() or "")
    if kind is ServerUnavailable:
        return ServerUnavailable(f"no server answers at {url}; start one with `attune serve`")
    if kind is not None:
        return kind(error.message())
    return told
