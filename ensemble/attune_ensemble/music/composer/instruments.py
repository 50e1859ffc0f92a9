"""Properties of the instruments, for the composer and the mixer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instrument:
    """Range (MIDI pitches), melodic register, envelope, and position in the mix.

    `pan` runs from -1 (left) to 1 (right); `send` is the amplitude sent to the reverberation; `release_s` is the
    release time of a note; a sustained instrument holds its notes, on any other they decay freely.
    """

    low: int
    high: int
    melody_centre: int
    sustained: bool
    pan: float
    send: float
    release_s: float
    level_db: float = 0.0


TABLE = {
    "piano": Instrument(28, 96, 72, False, -0.08, 0.30, 0.35),
    "electric_piano": Instrument(34, 94, 69, False, 0.15, 0.30, 0.30),
    "celesta": Instrument(60, 108, 79, False, 0.35, 0.42, 0.60, -1.0),
    "glockenspiel": Instrument(72, 104, 86, False, -0.40, 0.45, 0.80, -1.5),
    "vibraphone": Instrument(52, 88, 70, False, 0.30, 0.40, 0.60),
    "marimba": Instrument(42, 92, 67, False, -0.30, 0.35, 0.30),
    "harp": Instrument(28, 97, 69, False, -0.35, 0.40, 0.60),
    "nylon_guitar": Instrument(40, 83, 66, False, 0.22, 0.28, 0.30),
    "steel_guitar": Instrument(40, 83, 66, False, -0.25, 0.28, 0.30, -0.5),
    "violin": Instrument(56, 94, 74, True, -0.22, 0.42, 0.16, -1.0),
    "cello": Instrument(36, 74, 58, True, 0.24, 0.40, 0.18),
    "contrabass": Instrument(28, 53, 43, True, 0.10, 0.25, 0.20, 1.0),
    "strings": Instrument(36, 88, 70, True, 0.0, 0.40, 0.55),
    "flute": Instrument(60, 92, 75, True, 0.12, 0.42, 0.12),
    "oboe": Instrument(58, 90, 73, True, -0.12, 0.42, 0.12, -2.0),
    "clarinet": Instrument(50, 88, 68, True, 0.20, 0.42, 0.12, -0.5),
    "french_horn": Instrument(38, 76, 61, True, -0.30, 0.45, 0.20, -0.5),
    "choir": Instrument(43, 82, 66, True, 0.0, 0.50, 0.55, -0.5),
    "warm_pad": Instrument(36, 88, 66, True, 0.0, 0.35, 0.70, -1.0),
    "frame_drum": Instrument(36, 42, 38, False, 0.05, 0.35, 0.20),
}
"""Every instrument that a specification may name."""

SHORT_RINGING = frozenset({"celesta", "marimba", "frame_drum"})
"""Instruments whose notes decay within two seconds."""

ROLE_LEVEL_DB = {
    "melody": -2.0,
    "counter": -5.0,
    "arpeggio": -4.5,
    "pad": -8.5,
    "bass": -5.5,
    "bells": -5.0,
    "drum": -4.5,
}
"""Level of one note by the role in which it is played, relative to the melody."""
