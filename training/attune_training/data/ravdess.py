"""RAVDESS: acted speech of 24 actors (Livingstone & Russo 2018; CC BY-NC-SA 4.0).

RAVDESS has no valence, arousal or dominance. The targets here are DERIVED from the acted category and its intensity;
every figure based on them has to state it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attune_training.config import NEUTRAL_VAD
from attune_training.data.rows import CorpusError, Problem, Row
from attune_training.data.targets import ACTED_VAD, away_from

__all__ = ["NOTE", "STATEMENTS", "ClipName", "derived_vad", "parse_clip_name", "read_rows"]

NOTE = "targets derived from category and intensity"

STATEMENTS = {1: "Kids are talking by the door.", 2: "Dogs are sitting by the door."}

_CATEGORIES = dict(enumerate(ACTED_VAD, start=1))

_MIDDLE = (NEUTRAL_VAD, NEUTRAL_VAD, NEUTRAL_VAD)
_INTENSITY_SCALE = {"normal": 0.85, "strong": 1.25}
_INTENSITIES = {1: "normal", 2: "strong"}

_NAME = re.compile(r"03-01-(\d{2})-(\d{2})-(\d{2})-(\d{2})-(\d{2})")


@dataclass(frozen=True, slots=True)
class ClipName:
    """Fields of a clip's file name; actors are 1..24, odd ones male."""

    category: str
    intensity: str
    statement: int
    repetition: int
    actor: int


def parse_clip_name(stem: str) -> ClipName:
    """Read a file name such as `03-01-05-02-01-01-24` (without its suffix).

    Raises:
        ValueError: the name is not one of RAVDESS's audio-only speech clips.
    """
    match = _NAME.fullmatch(stem)
    numbers = [int(group) for group in match.groups()] if match else []
    if not numbers or not _in_range(*numbers):
        raise ValueError(f"{stem!r} is not the name of a RAVDESS speech clip, such as 03-01-05-02-01-01-24")
    category, intensity, statement, repetition, actor = numbers
    return ClipName(_CATEGORIES[category], _INTENSITIES[intensity], statement, repetition, actor)


def _in_range(category: int, intensity: int, statement: int, repetition: int, actor: int) -> bool:
    return (
        category in _CATEGORIES
        and intensity in _INTENSITIES
        and statement in STATEMENTS
        and repetition in (1, 2)
        and 1 <= actor <= 24
    )


def derived_vad(category: str, intensity: str) -> tuple[float, float, float]:
    """Return targets on 1..5: the category's point, its distance from 3 scaled by the intensity, clipped."""
    return away_from(_MIDDLE, ACTED_VAD[category], _INTENSITY_SCALE[intensity])


def read_rows(folder: Path) -> Iterator[Row | Problem]:
    """Yield the clips in `folder` (FLAC or WAV, also in sub-folders), sorted by name.

    A file whose name is not a speech clip's is a problem: its transcript and its emotion are unknown.

    Raises:
        CorpusError: the folder holds no FLAC or WAV file.
    """
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".flac", ".wav") and not path.name.startswith(".")
    )
    if not paths:
        raise CorpusError(
            f"{folder} is not RAVDESS: a folder of its speech clips is expected, FLAC or WAV, such as "
            "03-01-05-02-01-01-24.wav"
        )
    for path in paths:
        source = str(path.relative_to(folder))
        try:
            name = parse_clip_name(path.stem)
        except ValueError as error:
            yield Problem(source, None, str(error))
        else:
            yield _row(source, path, name)


def _row(source: str, path: Path, name: ClipName) -> Row:
    valence, arousal, dominance = derived_vad(name.category, name.intensity)
    return Row(
        source,
        None,
        path,
        STATEMENTS[name.statement],
        valence,
        arousal,
        dominance,
        speaker=f"actor-{name.actor:02d}",
        category=name.category,
    )
