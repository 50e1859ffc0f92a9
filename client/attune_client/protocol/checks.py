"""What a request may ask for, and whether the answer was whole, checked on both sides of the wire.

Each check of an option returns the value in its one plain type, and raises `InvalidOption` for a value of another type
or outside its range. Numbers of numpy count as numbers; a truth value is none.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from attune_client.protocol.bounds import (
    LENGTH_TOLERANCE_S,
    MAX_DEADLINE_S,
    MAX_MUSIC_S,
    MAX_SEED,
    MAX_TEXT_CHARS,
    MAX_TIMEOUT_S,
    MIN_MUSIC_S,
    VAD_LIMITS,
)
from attune_client.protocol.errors import InvalidOption, StreamEndedEarly
from attune_client.protocol.models import OtherLanguages

__all__ = [
    "check_complete",
    "check_deadline",
    "check_duration",
    "check_emotion",
    "check_number",
    "check_other_languages",
    "check_seed",
    "check_sources",
    "check_text",
    "check_timeout",
    "check_vad",
    "printable",
    "quote",
]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60

_LONGEST_NAME = 40  # longer ones are like no label

_SOURCES = ("audio", "text", "emotion", "vad", "music_spec")
_TOGETHER = [{source} for source in _SOURCES] + [{"emotion", "vad"}, {"music_spec", "text"}]


def check_sources(given: Collection[str]) -> frozenset[str]:
    """The inputs, among those that are `given`, that say what to make music for."""
    sources = frozenset(_SOURCES).intersection(given)
    if sources not in _TOGETHER:
        got = " and ".join(source for source in _SOURCES if source in sources) or "none"
        raise InvalidOption(
            "give one of audio, text, emotion, vad and music_spec; emotion and vad may stand together, and "
            f"a music_spec may have text for its prompt; got {got}"
        )
    return sources


def check_duration(value: Any) -> float:
    """The length of a piece of music, in seconds."""
    duration_s = check_number("duration_s", value)
    if not MIN_MUSIC_S <= duration_s <= MAX_MUSIC_S:
        raise InvalidOption(f"duration_s must lie between {MIN_MUSIC_S:g} and {MAX_MUSIC_S:g}, not {duration_s:g}")
    return duration_s


def check_timeout(value: Any) -> float:
    """The longest wait of a client for an answer, in seconds."""
    timeout_s = check_number("timeout_s", value)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidOption(f"timeout_s must lie above 0 and at most at {MAX_TIMEOUT_S:,.0f} s, not {timeout_s:g}")
    return timeout_s


def check_deadline(value: Any) -> float:
    """The time that a request is given, in seconds."""
    deadline_s = check_number("deadline_s", value)
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidOption(f"deadline_s must lie above 0 and at most at {MAX_DEADLINE_S:g}, not {deadline_s:g}")
    return deadline_s


def check_seed(value: Any) -> int:
    """The seed of a piece of music."""
    seed = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if not 0 <= seed <= MAX_SEED:
        raise InvalidOption(f"seed must be a whole number from 0 to 2^63 - 1, not {quote(value)}")
    return seed


def check_vad(values: Any) -> tuple[float, float, float]:
    """Valence, arousal and dominance."""
    low, high = VAD_LIMITS
    rule = f"vad must be valence, arousal and dominance, each between {low:g} and {high:g}"
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise InvalidOption(f"{rule}, not {quote(values)}")
    numbers = [check_number("vad", value) for value in values]
    if len(numbers) != 3 or not all(low <= number <= high for number in numbers):
        raise InvalidOption(f"{rule}, not {quote(numbers)}")
    valence, arousal, dominance = numbers
    return valence, arousal, dominance


def check_other_languages(value: Any) -> OtherLanguages:
    """What becomes of speech that is not English."""
    try:
        return OtherLanguages(value)
    except ValueError:
        raise InvalidOption(f"other_languages must be one of {', '.join(OtherLanguages)}, not {quote(value)}") from None


def check_emotion(name: str, labels: Sequence[str]) -> str:
    """The label among `labels`, all of lower case, that a name of an emotion in any case stands for."""
    label = name.strip().lower()
    if label in labels:
        return label
    near = difflib.get_close_matches(label[:_LONGEST_NAME], labels)
    perhaps = f" (perhaps {' or '.join(near)})" if near else ""
    raise InvalidOption(f"{quote(name)} is not one of the {len(labels)} emotions{perhaps}; the README lists them all")


def check_text(name: str, value: Any) -> str:
    """Words of a person, without the blanks around them."""
    if not isinstance(value, str):
        raise InvalidOption(f"{name} must be a str, not {quote(value)}")
    text = value.strip()
    if not text:
        raise InvalidOption(f"{name} is empty; it needs some words")
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidOption(f"{name} may have {MAX_TEXT_CHARS:,} characters, and has {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{name} is no valid Unicode: {quote(text[error.start])} stands alone") from None
    return text


def check_complete(frames: int, sample_rate: int, duration_s: float) -> None:
    """Raise `StreamEndedEarly` when `frames` of music are less than `duration_s`."""
    received_s = frames / sample_rate
    if received_s < duration_s - LENGTH_TOLERANCE_S:
        raise StreamEndedEarly(
            f"the music ended early: {received_s:.1f} s of {duration_s:g} s came",
            received_s=received_s,
            expected_s=duration_s,
        )


def check_number(name: str, value: Any) -> float:
    """A number; one that no float holds is infinite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InvalidOption(f"{name} must be a number, not {quote(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def quote(value: Any) -> str:
    """A value as an error may show it: short, on one line, and in characters that any terminal can print."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # whole numbers of thousands of digits have none, and what others define may do anything
        return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """The text, or its escaped form where a terminal could not print it."""
    return text if text.isprintable() else ascii(text)
