"""Tiny requests: one real inference of each model that the protocol declares, and a question that costs nothing.

`speech.ogg` is 1.5 s of `samples/sense_and_sensibility_0870.wav` (public domain, see `samples/README.md`).
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.bounds import MIN_MUSIC_S, NEUTRAL_VAD
from attune_client.protocol.models import (
    AUDIO_STATE,
    DEADLINE,
    MODELS,
    MUSIC_GENERATOR,
    MUSIC_PROMPT,
    MUSIC_THERAPY,
    SPEECH_EMOTION,
    SPEECH_SAMPLE_RATE,
    SPEECH_TO_TEXT,
    OtherLanguages,
)
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import ModelSpec, Tensors, TensorSpec

__all__ = ["Probe", "needed_by", "probe_of"]

_TOKENS = 16
_SILENCE_S = 0.5
_FREE_SIZES = {AUDIO_STATE.name: 50}
"""Of a dimension that may have any size: as many frames as the second of `num_samples` has at most."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs by which a model is asked, with all dimensions.

    `real` is a whole inference, which loads and warms what requests will need. `tiny` costs next to nothing, but takes
    the same way through the model; it may be one that is refused, for a refusal is an answer. `at_once` is refused
    before it takes a place or a turn: it is answered even where the model has much to do. None where there is no such
    thing.
    """

    spec: ModelSpec
    real: Tensors
    tiny: Tensors
    at_once: Tensors | None


def probe_of(model: str, required: Mapping[str, tuple[int, ...]] | None = None) -> Probe | None:
    """The probe of a model; None if the protocol does not declare it.

    `required` are the inputs that it cannot do without where it is served, with their shapes (no batch; -1: any size):
    of the inputs of a regressor the export decides. None: those that the protocol says.
    """
    spec = MODELS.get(model)
    if spec is None:
        return None
    if required is None:
        required = {tensor.name: tensor.shape for tensor in spec.inputs if not tensor.optional}
    chosen = {name: spec.input(name).shape for name in _CHOSEN.get(model, ())}
    real = _inputs(spec, {**required, **chosen})
    tiny = real | {name: value() for name, value in _TINY.get(model, {}).items()}
    at_once = real | {DEADLINE.name: np.array([-1], np.float32)} if DEADLINE in spec.inputs else None
    return Probe(spec, real, tiny, at_once)


def needed_by(model: str) -> frozenset[str]:
    """Names of the models without which a model cannot answer, as the protocol declares them."""
    spec = MODELS.get(model)
    used = {*spec.calls, *(step.name for step in spec.steps)} if spec is not None else set()
    return frozenset(used).union(*map(needed_by, used))


def _inputs(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    return {name: _with_batch(spec, _value_of(spec.input(name), shape)) for name, shape in shapes.items()}


def _with_batch(spec: ModelSpec, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value[np.newaxis] if spec.max_batch_size else value


def _value_of(tensor: TensorSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A harmless value: the named one, or else the middle of the scales."""
    if tensor.name in _VALUES:
        return _VALUES[tensor.name]()
    sizes = [_FREE_SIZES.get(tensor.name, _TOKENS) if size == -1 else size for size in shape]
    return np.full(sizes, NEUTRAL_VAD, tensor.dtype.numpy)


def _text(text: str) -> npt.NDArray[np.object_]:
    return np.array([text.encode()], dtype=np.object_)


def _speech() -> npt.NDArray[np.object_]:
    return np.array([resources.files(__package__).joinpath("speech.ogg").read_bytes()], dtype=np.object_)


def _silence() -> npt.NDArray[np.object_]:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SPEECH_SAMPLE_RATE)
        writer.writeframes(bytes(2 * round(_SILENCE_S * SPEECH_SAMPLE_RATE)))
    return np.array([file.getvalue()], dtype=np.object_)


_VALUES: dict[str, Callable[[], npt.NDArray[Any]]] = {
    "audio": _speech,
    "other_languages": lambda: _text(OtherLanguages.VOICE),
    "waveform": lambda: np.zeros(SPEECH_SAMPLE_RATE, np.float32),
    "num_samples": lambda: np.array([SPEECH_SAMPLE_RATE], np.int64),
    "transcript": lambda: _text("hello"),
    "input_ids": lambda: np.ones(_TOKENS, np.int64),
    "attention_mask": lambda: np.ones(_TOKENS, np.int64),
    "sentence_ids": lambda: np.ones(_TOKENS, np.int64),
    "sentence_mask": lambda: np.ones(_TOKENS, np.int64),
    "text": lambda: _text("a quiet evening"),
    "prompt": lambda: _text("a quiet evening"),
    "music_spec": lambda: _text(MusicSpec(72.0, "dorian", "D", ("piano",), "mp").to_json()),
    "duration_s": lambda: np.array([MIN_MUSIC_S], np.float32),
    "seed": lambda: np.array([1], np.int64),
}

# Of the optional inputs those that a real request has.
_CHOSEN = {
    SPEECH_TO_TEXT.name: {"other_languages"},
    SPEECH_EMOTION.name: {"other_languages"},
    MUSIC_PROMPT.name: {"text"},
    MUSIC_GENERATOR.name: {"duration_s", "seed"},
    MUSIC_THERAPY.name: {"text", "duration_s", "seed"},
}

_TINY: dict[str, dict[str, Callable[[], npt.NDArray[Any]]]] = {
    SPEECH_TO_TEXT.name: {"audio": _silence},
    SPEECH_EMOTION.name: {"audio": _silence},
    MUSIC_GENERATOR.name: {"check_only": lambda: np.array([1], np.int32)},
}
