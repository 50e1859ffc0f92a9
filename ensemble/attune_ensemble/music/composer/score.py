"""The score: data types of a composition. Beats count from the start of their phrase; pitches are MIDI numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

DEEP_STROKE, OPEN_STROKE, BRUSH_STROKE = 36, 38, 42
"""Pitches of the frame drum's strokes: centre, near the rim, and brushed with the fingertips."""

DRUM = "frame_drum"
"""The only instrument whose pitches denote strokes."""


@dataclass(frozen=True, slots=True)
class Note:
    """One note: onset and length in beats, MIDI pitch, velocity 1..127, instrument and role."""

    start_beat: float
    duration_beats: float
    pitch: int
    velocity: int
    instrument: str
    role: str

    @property
    def is_pitched(self) -> bool:
        """False for a drum stroke."""
        return self.instrument != DRUM


@dataclass(frozen=True, slots=True)
class Phrase:
    """A few bars of music at one tempo and dynamics: when it starts, its metre, its chords (one a bar), its notes."""

    label: str
    start_s: float
    tempo_bpm: float
    dynamics: str
    beats_per_bar: int
    num_bars: int
    degrees: tuple[int, ...]
    notes: tuple[Note, ...]

    @property
    def seconds_per_beat(self) -> float:
        """Length of a beat in seconds."""
        return 60.0 / self.tempo_bpm

    @property
    def end_s(self) -> float:
        """End of its last bar, in seconds from the start of the piece."""
        return self.start_s + self.num_bars * self.beats_per_bar * self.seconds_per_beat


@dataclass(frozen=True)
class Score:
    """A whole piece: its phrases in order."""

    phrases: tuple[Phrase, ...]

    @classmethod
    def of(cls, phrases: Iterable[Phrase]) -> Score:
        """Collect consecutive phrases of a composer."""
        return cls(tuple(phrases))

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """All notes, phrase by phrase."""
        return tuple(note for phrase in self.phrases for note in phrase.notes)

    @property
    def instruments(self) -> frozenset[str]:
        """Every instrument that plays."""
        return frozenset(note.instrument for note in self.notes)

    @property
    def pitch_classes(self) -> frozenset[int]:
        """Pitch classes (0 is C) of all pitched notes."""
        return frozenset(note.pitch % 12 for note in self.notes if note.is_pitched)
