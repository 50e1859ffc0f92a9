"""The musical specification: what the knowledge base asks for and every music engine receives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from attune_client.protocol.bounds import MAX_TEMPO_BPM, MIN_TEMPO_BPM
from attune_client.protocol.checks import check_number, quote
from attune_client.protocol.errors import InvalidOption

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
        tempo_bpm = check_number("tempo_bpm", self.tempo_bpm)
        if not MIN_TEMPO_BPM <= tempo_bpm <= MAX_TEMPO_BPM:
            raise InvalidOption(
                f"tempo_bpm must lie between {MIN_TEMPO_BPM:g} and {MAX_TEMPO_BPM:g}, not {tempo_bpm:g}"
            )
        object.__setattr__(self, "tempo_bpm", tempo_bpm)  # JSON has no numbers of numpy
        _one_of("mode", self.mode, MODES)
        _one_of("tonic", self.tonic, TONICS)
        _one_of("dynamics", self.dynamics, DYNAMICS)
        if not self.instruments or not isinstance(self.instruments, tuple):
            raise InvalidOption(f"instruments must name at least one of {', '.join(INSTRUMENTS)}")
        for instrument in self.instruments:
            _one_of("instruments", instrument, INSTRUMENTS)

    def to_json(self) -> str:
        """The specification as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MusicSpec:
        """The specification that `to_json` wrote; raises `InvalidOption` for anything else."""
        try:
            return cls.of(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidOption(_FORM) from error

    @classmethod
    def of(cls, values: MusicSpec | Mapping[str, Any] | str) -> MusicSpec:
        """The specification that a mapping of its fields or a JSON object holds; `InvalidOption` for anything else."""
        if isinstance(values, MusicSpec):
            return values
        if isinstance(values, str):
            return cls.from_json(values)
        if not isinstance(values, Mapping) or not all(field.name in values for field in fields(cls)):
            raise InvalidOption(f"{_FORM}, not {quote(values)}")
        instruments = values["instruments"]
        return cls(
            tempo_bpm=values["tempo_bpm"],
            mode=values["mode"],
            tonic=values["tonic"],
            instruments=tuple(instruments) if isinstance(instruments, list | tuple) else instruments,
            dynamics=values["dynamics"],
        )


_FORM = f"music_spec must be a JSON object with {', '.join(field.name for field in fields(MusicSpec))}"


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidOption(f"{field} must be one of {', '.join(allowed)}; got {quote(value)}")
