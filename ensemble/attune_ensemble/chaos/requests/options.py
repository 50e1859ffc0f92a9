"""Options at and past their bounds, and text of no words, too many, in no encoding, or of another meaning."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from attune_client.protocol import bounds
from attune_client.protocol.tensors import DType, ModelSpec, bytes_tensor
from attune_ensemble.chaos.requests.building import SAMPLES, Draw, Fault, Message, has, set_input, sound_value

__all__ = ["FAULTS"]

_HUGE = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 1e38, 3.4e38)


def _edges(*numbers: float) -> tuple[float, ...]:
    """Each number, and what lies just beside it as a 32-bit float."""
    near = [float(np.nextafter(np.float32(number), np.float32(to))) for number in numbers for to in (-np.inf, np.inf)]
    return (*numbers, *near, *_HUGE)


_NUMBERS: dict[str, tuple[float, ...]] = {
    "duration_s": _edges(bounds.MIN_MUSIC_S, bounds.MAX_MUSIC_S),
    "deadline_s": _edges(bounds.MAX_DEADLINE_S),
    "temperature": _edges(bounds.MAX_TEMPERATURE),
    "top_p": _edges(1.0),
    "guidance": _edges(bounds.MIN_GUIDANCE, bounds.MAX_GUIDANCE),
    "vad": _edges(*bounds.VAD_LIMITS),
    "valence": _edges(*bounds.VAD_LIMITS),
    "arousal_dominance": _edges(*bounds.VAD_LIMITS),
    "waveform": _HUGE,
    "seed": (0, -1, bounds.MAX_SEED, -(2**63)),
    "top_k": (0, 1, -1, 2**31 - 1, -(2**31)),
    "gentle": (0, 1, -1, 2**31 - 1),
    "check_only": (1, -1, 2**31 - 1),
    "num_samples": (0, 1, -1, SAMPLES + 1, 2**31, 2**62, 2**63 - 1, -(2**63)),
    "input_ids": (-1, 30_521, 30_522, 2**31, 2**62, -(2**63)),
    "sentence_ids": (-1, 30_521, 30_522, 2**31, 2**62, -(2**63)),
    "attention_mask": (0, -1, 2, 2**62),
    "sentence_mask": (0, -1, 2, 2**62),
}
"""By input: values at and past the bounds."""


_OF_TYPE: dict[DType, st.SearchStrategy[float]] = {
    DType.FP32: st.floats(width=32),
    DType.INT32: st.integers(-(2**31), 2**31 - 1),
    DType.INT64: st.integers(-(2**63), 2**63 - 1),
}


def _odd_number(draw: Draw, model: ModelSpec, message: Message) -> str:
    """One of the numbers at or past a bound; of a tensor of several, all of them or the first."""
    spec = draw(st.sampled_from([tensor for tensor in model.inputs if tensor.name in _NUMBERS]))
    number = draw(st.sampled_from(_NUMBERS[spec.name]) | _OF_TYPE[spec.dtype])
    value = sound_value(spec)
    if draw(st.booleans()):
        value[...] = number
    else:
        value.flat[0] = number
    set_input(message, model, spec, value)
    return f"{spec.name} of {number}"


_LONG = "rain and again rain "
_WORDS = st.sampled_from(
    [
        *("", " ", "\0", "\n\n\n", "x", "‮⁦", "é" * 2_001, "🥲" * 2_001, "a" * 2_000, "a" * 2_001),
        *("\x1b[31mred", "{{7*7}}", "%s%n", "../../etc/passwd", "<script>", "'; DROP TABLE emotions; --"),
        *("NaN", "None", "hangry", "CALM", " calm ", "calm,hopeful", "K" * 60 + "́" * 1_000),
    ]
)
_NO_WORDS = st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80", b"caf\xe9", b"\x80" * 100, b"a\xc0\x80"])


def _long_text(draw: Draw) -> str:
    return _LONG * draw(st.sampled_from([101, 1_000, 10_000]))


def _odd_text(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Text of no words, too many, in no encoding, or of another meaning."""
    named = ("text", "emotion", "engine", "prompt", "transcript", "other_languages", "audio")
    spec = draw(st.sampled_from([tensor for tensor in model.inputs if tensor.name in named]))
    kind = draw(st.integers(0, 9))
    text = _long_text(draw) if kind == 0 else draw(_NO_WORDS if kind < 3 else _WORDS | st.text(max_size=30))
    encoded = text.encode() if isinstance(text, str) else text
    set_input(message, model, spec, bytes_tensor(encoded[: spec.max_bytes]))  # longer ones no model may see
    return f"{spec.name} of {text[:20]!r}, {len(text)} long"


FAULTS: dict[str, Fault] = {
    "number": (has(*_NUMBERS), _odd_number),
    "text": (has("text", "emotion", "prompt", "transcript", "audio"), _odd_text),
}
