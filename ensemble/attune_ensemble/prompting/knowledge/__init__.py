"""The knowledge base: 40 emotions, where each lies in VAD space, and the music that answers it.

`emotions.yaml` beside this file is the data; `load_emotions` reads it and holds it to its rules (paper, section III-E).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from attune_client.protocol.bounds import MAX_TEMPO_BPM, MIN_TEMPO_BPM
from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import NUM_EMOTIONS
from attune_client.protocol.music_spec import DYNAMICS, INSTRUMENTS, MODES, TONICS

__all__ = ["EMOTIONS_FILE", "OCTANTS", "Emotion", "KnowledgeError", "load_emotions", "octant_of"]

EMOTIONS_FILE = Path(__file__).with_name("emotions.yaml")
"""The data file that ships with Attune."""

OCTANTS = tuple("".join(levels) for levels in product("HL", repeat=3))
"""The 8 octants: H or L for valence, arousal and dominance, in that order."""

EMOTIONS_PER_OCTANT = NUM_EMOTIONS // len(OCTANTS)

VAD_DIMENSIONS = ("valence", "arousal", "dominance")
_MIN_VAD, _MIDDLE_VAD, _MAX_VAD = 1.0, 3.0, 5.0
_MIN_INSTRUMENTS, _MAX_INSTRUMENTS = 2, 5
_FIELDS = (
    "label",
    "octant",
    "anchor",
    "objective",
    "tempo_bpm",
    "mode",
    "tonic",
    "instruments",
    "dynamics",
    "description",
)


class KnowledgeError(AttuneError):
    """The knowledge base, or the index made from it, cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Emotion:
    """One emotion and the music that answers it.

    `anchor` is valence, arousal, dominance, each 1..5; `tempo_low_bpm`..`tempo_high_bpm` is the range that arousal
    chooses from; the musical words are those of `attune_client.protocol.music_spec`.
    """

    label: str
    octant: str
    anchor: tuple[float, float, float]
    objective: str
    tempo_low_bpm: float
    tempo_high_bpm: float
    mode: str
    tonic: str
    instruments: tuple[str, ...]
    dynamics: str
    description: str


def octant_of(vad: tuple[float, float, float]) -> str:
    """The octant of a point on the 1..5 scales: H where a value is above 3, otherwise L (paper, section III-E)."""
    return "".join("H" if value > _MIDDLE_VAD else "L" for value in vad)


def load_emotions(path: Path | None = None) -> tuple[Emotion, ...]:
    """The emotions in class order (index i is class i of the emotion classifier), from `path` or the shipped file.

    Raises `KnowledgeError`, naming the entry and the field, when the file breaks a rule: 40 entries, 5 to an octant,
    labels and descriptions all distinct, anchors inside their octants, and only the vocabulary of the music spec.
    """
    source = path or EMOTIONS_FILE
    entries = _read_entries(source)
    emotions = tuple(_parse_entry(entry, f"{source.name}, entry {number}") for number, entry in enumerate(entries, 1))
    _check_together(emotions, source.name)
    return emotions


def _read_entries(source: Path) -> list[Any]:
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KnowledgeError(f"cannot read the knowledge base {source}: {error}") from error
    entries = document.get("emotions") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KnowledgeError(f"{source.name} must hold a list named 'emotions'")
    return entries


def _parse_entry(entry: Any, where: str) -> Emotion:
    _require(isinstance(entry, dict), where, f"must be a mapping with {', '.join(_FIELDS)}")
    label = entry.get("label")
    _require(isinstance(label, str) and label.isalpha() and label.islower(), where, "label must be one lower-case word")
    where = f"{where} ({label})"
    wrong = set(_FIELDS) ^ set(entry)
    _require(not wrong, where, f"must have exactly the fields {', '.join(_FIELDS)}; check {', '.join(map(str, wrong))}")
    anchor = _parse_anchor(entry["anchor"], where)
    _require(entry["octant"] == octant_of(anchor), where, f"octant must be {octant_of(anchor)}, where its anchor lies")
    tempo_low_bpm, tempo_high_bpm = _parse_tempo(entry["tempo_bpm"], where)
    return Emotion(
        label=label,
        octant=entry["octant"],
        anchor=anchor,
        objective=_parse_prose(entry["objective"], "objective", where),
        tempo_low_bpm=tempo_low_bpm,
        tempo_high_bpm=tempo_high_bpm,
        mode=_parse_choice(entry["mode"], "mode", MODES, where),
        tonic=_parse_choice(entry["tonic"], "tonic", TONICS, where),
        instruments=_parse_instruments(entry["instruments"], where),
        dynamics=_parse_choice(entry["dynamics"], "dynamics", DYNAMICS, where),
        description=_parse_prose(entry["description"], "description", where),
    )


def _parse_numbers(value: Any, field: str, names: tuple[str, ...], where: str) -> tuple[float, ...]:
    well_formed = isinstance(value, dict) and set(value) == set(names)
    # YAML's true and false are integers to Python.
    numeric = well_formed and all(type(value[name]) in (int, float) for name in names)
    _require(numeric, where, f"{field} must be numbers for {', '.join(names)}")
    return tuple(float(value[name]) for name in names)


def _parse_anchor(value: Any, where: str) -> tuple[float, float, float]:
    valence, arousal, dominance = _parse_numbers(value, "anchor", VAD_DIMENSIONS, where)
    anchor = (valence, arousal, dominance)
    inside = all(_MIN_VAD <= coordinate <= _MAX_VAD for coordinate in anchor)
    _require(inside, where, f"anchor must lie between {_MIN_VAD:g} and {_MAX_VAD:g} on every scale")
    return anchor


def _parse_tempo(value: Any, where: str) -> tuple[float, float]:
    low, high = _parse_numbers(value, "tempo_bpm", ("low", "high"), where)
    rule = f"tempo_bpm must rise from low to high within {MIN_TEMPO_BPM:g}..{MAX_TEMPO_BPM:g}"
    _require(MIN_TEMPO_BPM <= low < high <= MAX_TEMPO_BPM, where, rule)
    return low, high


def _parse_choice(value: Any, field: str, allowed: tuple[str, ...], where: str) -> str:
    _require(value in allowed, where, f"{field} must be one of {', '.join(allowed)}; got {value!r}")
    return str(value)


def _parse_instruments(value: Any, where: str) -> tuple[str, ...]:
    counted = isinstance(value, list) and _MIN_INSTRUMENTS <= len(value) <= _MAX_INSTRUMENTS
    _require(counted, where, f"instruments must list {_MIN_INSTRUMENTS} to {_MAX_INSTRUMENTS}")
    instruments = tuple(_parse_choice(name, "instruments", INSTRUMENTS, where) for name in value)
    _require(len(set(instruments)) == len(instruments), where, "instruments must not name one twice")
    return instruments


def _parse_prose(value: Any, field: str, where: str) -> str:
    _require(isinstance(value, str) and bool(value.strip()), where, f"{field} must be a text")
    return " ".join(value.split())


def _check_together(emotions: tuple[Emotion, ...], source: str) -> None:
    _require(len(emotions) == NUM_EMOTIONS, source, f"must hold {NUM_EMOTIONS} emotions, not {len(emotions)}")
    for field in ("label", "anchor", "description"):
        seen: dict[Any, Emotion] = {}
        for emotion in emotions:
            other = seen.setdefault(getattr(emotion, field), emotion)
            _require(other is emotion, source, f"{other.label} and {emotion.label} must not share one {field}")
    counts = Counter(emotion.octant for emotion in emotions)
    for octant in OCTANTS:
        rule = f"octant {octant} must hold {EMOTIONS_PER_OCTANT} emotions, not {counts[octant]}"
        _require(counts[octant] == EMOTIONS_PER_OCTANT, source, rule)


def _require(holds: bool, where: str, rule: str) -> None:
    if not holds:
        raise KnowledgeError(f"{where}: {rule}")
