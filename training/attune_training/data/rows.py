"""Raw rows of a corpus, and their validation into utterances or problems.

Every reader yields rows as the corpus has them; the rules for a valid row are defined here alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from attune_training.config import MAX_VAD, MIN_VAD
from attune_training.data.audio import AudioSource, audio_fault, encoded_audio
from attune_training.data.utterance import SPLIT_NAMES, Utterance

__all__ = [
    "UNLABELLED",
    "CheckedRow",
    "CorpusError",
    "Problem",
    "Row",
    "cell_text",
    "check_row",
    "first_line",
    "split_name",
]

_SPLIT_ALIASES = {"dev": "validation", "val": "validation", "valid": "validation"}


class _Unlabelled:
    """The one value of its kind."""

    def __repr__(self) -> str:
        return "UNLABELLED"


UNLABELLED: Final = _Unlabelled()
"""The label of a dimension that a corpus knows nothing of; a label that should be there and is not is a bad row."""


class CorpusError(ValueError):
    """A corpus is missing or of another format, or has bad rows that are not to be skipped."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used: its location, and why. `line` counts from 1; None where the source has no lines."""

    source: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row as the corpus has it; the labels may be numbers, text, nothing or `UNLABELLED`.

    `audio` None: words alone.
    """

    source: str
    line: int | None
    audio: AudioSource | None
    transcript: str
    valence: object
    arousal: object
    dominance: object
    speaker: str
    session: str = ""
    category: str = ""
    split: str = ""
    form: str = ""
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A valid row, and the SHA-256 of its encoded audio (empty for text only)."""

    utterance: Utterance
    audio_digest: str


def first_line(last_line: int, fields: Iterable[object]) -> int:
    """Return the first line of a CSV row; its reader counts the last, and a quoted field may span several."""
    return last_line - sum(field.count("\n") for field in fields if isinstance(field, str))


def cell_text(value: object) -> str:
    """Return a table's cell as text; empty for a missing value. Whole numbers lose their decimals: 3.0 is `3`."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if value.is_integer():
            return str(int(value))
    return "" if value is None else str(value).strip()


def split_name(raw: str) -> str:
    """Return the part of a split for a corpus's name `raw` (`dev` is the validation part); empty if unknown."""
    name = raw.strip().lower()
    name = _SPLIT_ALIASES.get(name, name)
    return name if name in SPLIT_NAMES else ""


def check_row(row: Row) -> CheckedRow | Problem:
    """Return the row as an utterance, or a problem that lists all its faults."""
    reasons: list[str] = []
    audio_digest = _check_audio(row.audio, reasons)
    transcript = row.transcript.strip()
    if not transcript:
        reasons.append("the transcript is empty")
    valence, arousal, dominance = (
        _check_label(name, raw, reasons)
        for name, raw in (("valence", row.valence), ("arousal", row.arousal), ("dominance", row.dominance))
    )
    split = _check_split(row.split, reasons)
    if reasons:
        return Problem(row.source, row.line, "; ".join(reasons))
    origin = (row.speaker, row.session, row.category.lower(), split, row.form, row.agreement)
    utterance = Utterance(row.audio, transcript, valence, arousal, dominance, *origin)
    return CheckedRow(utterance, audio_digest)


def _check_audio(source: AudioSource | None, reasons: list[str]) -> str:
    """Return the digest of the encoded audio; its faults are appended to `reasons`."""
    if source is None:
        return ""
    try:
        encoded = encoded_audio(source)
    except ValueError as error:
        reasons.append(str(error))
        return ""
    if fault := audio_fault(encoded):
        reasons.append(f"{source} {fault}")
    return hashlib.sha256(encoded).hexdigest()


def _check_label(name: str, raw: object, reasons: list[str]) -> float:
    """Return the label, NaN where there is none, with what is wrong with it added to `reasons`."""
    if raw is UNLABELLED:
        return math.nan
    text = "nan" if raw is None else str(raw).strip() or "nan"
    try:
        value = float(text)
    except ValueError:
        reasons.append(f"{name} {text!r} is not a number")
        return math.nan
    if math.isnan(value):
        reasons.append(f"{name} is missing")
    elif not MIN_VAD <= value <= MAX_VAD:
        reasons.append(f"{name} {value:g} is outside 1..5")
    return value


def _check_split(raw: str, reasons: list[str]) -> str:
    split = split_name(raw)
    if raw and not split:
        reasons.append(f"the split {raw!r} is none of {', '.join(SPLIT_NAMES)}")
    return split
