"""Tiny requests: one real inference of each model that the protocol declares, and a question that costs nothing.

`speech.ogg` is 1.5 s of `samples/sense_and_sensibility_0870.wav` (public domain, see `samples/README.md`).
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.bounds import MIN_MUSIC_S, NEUTRAL_VAD
from attune_client.protocol.models import (
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
from attune_client.protocol.tensors import DType, ModelSpec, Tensors
from attune_ensemble.serving.guard.signatures import Signature

__all__ = ["Probe", "probe_of"]

_TOKENS = 16
_SILENCE_S = 0.5


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


def probe_of(signature: Signature) -> Probe | None:
    """The probe of a model as it is served; None if it is none of the protocol's."""
    spec = MODELS.get(signature.name)
    if spec is None or not signature.inputs.keys() <= {tensor.name for tensor in spec.inputs}:
        return None
    needed = {name for name, each in signature.inputs.items() if not each.optional}
    names = needed | (_CHOSEN.get(spec.name, set()) & signature.inputs.keys())
    real = {name: _value_of(name, signature) for name in names}
    tiny = real | {name: value() for name, value in _TINY.get(spec.name, {}).items()}
    has_deadline = DEADLINE.name in signature.inputs
    return Probe(spec, real, tiny, real | {DEADLINE.name: np.array([-1], np.float32)} if has_deadline else None)


def _value_of(name: str, signature: Signature) -> npt.NDArray[Any]:
    """A harmless value: the one for that name, or else the middle of the scales, of the size that fits the others."""
    declared = signature.inputs[name]
    if name in _VALUES:
        value = _VALUES[name]()
    else:
        shape = [_TOKENS if size == -1 else size for size in declared.dims]
        value = np.full(shape, NEUTRAL_VAD, DType(declared.datatype).numpy)
    return value[np.newaxis] if signature.max_batch else value


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
