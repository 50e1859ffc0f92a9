"""What the requests are built from: whole ones, with which nothing is wrong, and what puts an input in or out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from attune_client.protocol.models import (
    AROUSAL_DOMINANCE_MODEL,
    ATTENTION_MASK,
    AUDIO_STATE,
    EMOTION_ENCODER,
    MODELS,
    NUM_SAMPLES,
    SPEECH_INPUTS,
    TEXT_STATE,
    VALENCE_MODEL,
)
from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec, bytes_tensor

__all__ = [
    "ASKED",
    "CONTENTS",
    "ENOUGH",
    "MUSIC_SPEC",
    "SAMPLES",
    "Draw",
    "Fault",
    "Message",
    "add_input",
    "always",
    "as_raw",
    "given_inputs",
    "has",
    "raw_contents",
    "request_with",
    "set_input",
    "sound_value",
    "whole_request",
]

Message = Any  # a ModelInferRequest of protobuf, whose classes are made at run time
Draw = Callable[[st.SearchStrategy[Any]], Any]

Fault = tuple[Callable[[ModelSpec], bool], Callable[[Draw, ModelSpec, Message], str | bytes]]
"""For which models there is such a fault, and what puts it into a request (or makes the bytes) and tells it."""

SAMPLES = 4_000
"""Length of a sound waveform."""

MUSIC_SPEC = {"tempo_bpm": 72, "mode": "dorian", "tonic": "D", "instruments": ["piano"], "dynamics": "mp"}
"""A sound specification of music."""

CONTENTS = {
    DType.FP32: "fp32_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.BYTES: "bytes_contents",
}
"""The field of typed contents for each datatype."""

ENOUGH = {"music_prompt": ("text",), "music_therapy": ("text", "duration_s")}
"""Of a model whose inputs are optional, those that make a whole request."""

_WIDTH = 256


def _as_shipped(model: ModelSpec) -> ModelSpec:
    """The model with the inputs that it has where the shipped regressors are served: of theirs the export decides."""
    if model == EMOTION_ENCODER:
        return replace(model, inputs=SPEECH_INPUTS)
    if model not in (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL):
        return model
    states = (replace(state, shape=(-1, _WIDTH), optional=False) for state in (AUDIO_STATE, TEXT_STATE))
    return replace(model, inputs=(*states, NUM_SAMPLES, ATTENTION_MASK))


ASKED = {name: _as_shipped(model) for name, model in MODELS.items()}
"""The models to which requests are made, by name."""


def whole_request(model: ModelSpec, *, raw: bool = True) -> Message:
    """A request that the model answers, with the inputs that it needs and one of those that it may be given."""
    return request_with(model, {tensor.name: sound_value(tensor) for tensor in given_inputs(model)}, raw=raw)


def request_with(model: ModelSpec, values: Mapping[str, npt.NDArray[Any]], *, raw: bool = True) -> Message:
    """A request with these inputs, each without the batch."""
    message = service_pb2.ModelInferRequest(model_name=model.name)
    for name, value in values.items():
        add_input(message, model, model.input(name), value, raw=raw)
    return message


def given_inputs(model: ModelSpec) -> list[TensorSpec]:
    """The inputs of a whole request."""
    return [tensor for tensor in model.inputs if not tensor.optional or tensor.name in ENOUGH.get(model.name, ())]


def sound_value(tensor: TensorSpec) -> npt.NDArray[Any]:
    """Values with which a model can work."""
    shape = tuple(16 if size == -1 else size for size in tensor.shape)
    match tensor.name:
        case "waveform":
            return (0.1 * np.sin(np.arange(SAMPLES) / 7)).astype(np.float32)
        case "num_samples":
            return np.array([SAMPLES], np.int64)
        case "audio":
            return bytes_tensor(b"RIFF no recording")
        case "music_spec":
            return bytes_tensor(json.dumps(MUSIC_SPEC))
        case "emotion":
            return bytes_tensor("calm")
        case "other_languages":
            return bytes_tensor("voice")
        case _ if tensor.dtype is DType.BYTES:
            return bytes_tensor("rain on the window")
        case _:
            return np.full(shape, 1, tensor.dtype.numpy)


def add_input(message: Message, model: ModelSpec, tensor: TensorSpec, value: npt.NDArray[Any], *, raw: bool) -> None:
    """Add an input as raw or as typed contents; a value of one request becomes a batch of one row."""
    rows = [1] if model.max_batch_size else []
    added = message.inputs.add(name=tensor.name, datatype=tensor.dtype.value, shape=[*rows, *value.shape])
    if raw:
        message.raw_input_contents.append(raw_contents(value))
    else:
        getattr(added.contents, CONTENTS[tensor.dtype]).extend(value.ravel().tolist())


def raw_contents(value: npt.NDArray[Any]) -> bytes:
    """The value as the bytes that travel."""
    if value.dtype != np.object_:
        return value.tobytes()
    serialised: npt.NDArray[np.object_] = serialize_byte_tensor(value)
    return bytes(serialised.item())


def as_raw(message: Message, model: ModelSpec) -> None:
    """Put raw contents, of sound values, in the place of typed ones."""
    if not message.raw_input_contents:
        for tensor in message.inputs:
            message.raw_input_contents.append(raw_contents(sound_value(model.input(tensor.name))))
            tensor.ClearField("contents")


def set_input(message: Message, model: ModelSpec, spec: TensorSpec, value: npt.NDArray[Any]) -> None:
    """Put a value in the place of the input's own, or beside the others."""
    raw = bool(message.raw_input_contents)
    for index, tensor in enumerate(message.inputs):
        if tensor.name == spec.name:
            del message.inputs[index]
            if raw:
                del message.raw_input_contents[index]
            break
    add_input(message, model, spec, value, raw=raw)


def always(model: ModelSpec) -> bool:
    """For a fault that every model's requests may have."""
    return True


def has(*names: str) -> Callable[[ModelSpec], bool]:
    """For a fault that needs one of these inputs."""
    return lambda model: any(tensor.name in names for tensor in model.inputs)
