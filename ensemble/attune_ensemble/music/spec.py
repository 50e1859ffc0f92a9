"""The musical specification: what the knowledge base asks for and every music engine receives."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from attune_client.protocol.errors import InvalidOption, quoted

INSTRUMENTS = (
    "piano",
    "electric_piano",
    "celesta",
    "glockenspiel",
    "vibraphone",
    "marimba",
    "harp",
    "nylon_guitar",
    "steel_guitar",
    "violin",
    "cello",
    "contrabass",
    "strings",
    "flute",
    "oboe",
    "clarinet",
    "french_horn",
    "choir",
    "warm_pad",
    "frame_drum",
)
"""Instruments that a specification may name."""

MODES = ("phrygian", "aeolian", "dorian", "mixolydian", "ionian", "lydian")
"""The modes, from the darkest to the brightest."""

TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
"""Pitch classes that may be the tonic; the index is the distance from C in semitones."""

DYNAMICS = ("pp", "p", "mp", "mf", "f")
"""Dynamic levels, from the softest to the loudest."""

MIN_TEMPO_BPM, MAX_TEMPO_BPM = 40.0, 180.0


@dataclass(frozen=True, slots=True)
class MusicSpec:
    """What the music should be: tempo in beats per minute, mode on a tonic, instruments, dynamics.

    Raises `InvalidOption` when a field is outside what the engines can play.
    """

    tempo_bpm: float
    mode: str
    tonic: str
    instruments: tuple[str, ...]
    dynamics: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tempo_bpm) and MIN_TEMPO_BPM <= self.tempo_bpm <= MAX_TEMPO_BPM):
            raise InvalidOption(
                f"tempo_bpm must lie between {MIN_TEMPO_BPM:g} and {MAX_TEMPO_BPM:g}, not {self.tempo_bpm}"
            )
        _one_of("mode", self.mode, MODES)
        _one_of("tonic", self.tonic, TONICS)
        _one_of("dynamics", self.dynamics, DYNAMICS)
        if not self.instruments:
            raise InvalidOption(f"instruments must name at least one of {', '.join(INSTRUMENTS)}")
        for instrument in self.instruments:
            _one_of("instruments", instrument, INSTRUMENTS)

    def to_json(self) -> str:
        """The specification as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MusicSpec:
        """The specification that `to_json` wrote; raises `InvalidOption` for anything else."""
        names = [field.name for field in fields(cls)]
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(
                tempo_bpm=float(values["tempo_bpm"]),
                mode=str(values["mode"]),
                tonic=str(values["tonic"]),
                instruments=tuple(str(name) for name in values["instruments"]),
                dynamics=str(values["dynamics"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidOption(f"music_spec must be a JSON object with {', '.join(names)}") from error


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(f"{field} must be one of {', '.join(allowed)}; got {quoted(value)}")
