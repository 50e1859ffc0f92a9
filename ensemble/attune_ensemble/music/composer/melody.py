"""Melody: a theme consists of short rhythmic cells with a contour, and is fitted to the chords of each phrase.

Cells recur in variations (inverted, ornamented, thinned) for motivic development.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from attune_ensemble.music.composer.harmony import Chord, Key

_CALM_CELLS = {
    4: ((0.0,), (0.0, 2.0), (0.0, 3.0), (0.0, 2.0, 3.0), (0.0, 1.0, 2.0), (1.0, 2.0)),
    3: ((0.0,), (0.0, 2.0), (0.0, 1.0), (0.0, 1.0, 2.0)),
}
_MOVING_CELLS = {
    4: (
        (0.0, 1.0, 2.0, 3.0),
        (0.0, 1.5, 2.0),
        (0.0, 1.5, 2.0, 3.0),
        (0.0, 2.0, 2.5, 3.0),
        (0.0, 0.5, 1.0, 2.0),
        (0.0, 1.0, 1.5, 2.0, 3.0),
        (0.5, 1.0, 2.0, 3.0),
    ),
    3: ((0.0, 1.5, 2.0), (0.0, 1.0, 2.0, 2.5), (0.0, 0.5, 1.0, 2.0), (0.0, 1.0, 1.5, 2.0)),
}
_CADENCE_CELLS = {4: ((0.0, 2.0), (0.0, 1.0, 2.0), (0.0,)), 3: ((0.0,), (0.0, 1.0))}
_STEPS = (-2, -1, -1, -1, 1, 1, 1, 2)
_LARGEST_LEAP = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One bar of a theme: onsets, the interval of each note from the one before in scale steps, and length in beats."""

    onsets: tuple[float, ...]
    steps: tuple[int, ...]
    beats: int

    def inverted(self) -> Cell:
        """Return the cell with its contour inverted."""
        return replace(self, steps=tuple(-step for step in self.steps))

    def thinned(self) -> Cell:
        """Return the cell reduced to its notes on even beats."""
        kept = [i for i, onset in enumerate(self.onsets) if onset % 2 == 0] or [0]
        return Cell(tuple(self.onsets[i] for i in kept), tuple(self.steps[i] for i in kept), self.beats)

    def ornamented(self) -> Cell:
        """Return the cell with its longest note replaced by a neighbour-note figure of half beats."""
        lengths = [b - a for a, b in zip(self.onsets, (*self.onsets[1:], float(self.beats)), strict=True)]
        i = max(range(len(lengths)), key=lambda k: lengths[k])
        if lengths[i] < 2:
            return self
        at = self.onsets[i] + 1.0
        onsets = (*self.onsets[: i + 1], at, at + 0.5, *self.onsets[i + 1 :])
        return Cell(onsets, (*self.steps[: i + 1], 1, -1, *self.steps[i + 1 :]), self.beats)


@dataclass(frozen=True, slots=True)
class Theme:
    """Two cells and a cadence; a phrase of any length is built from them."""

    statement: Cell
    answer: Cell
    cadence: Cell

    def varied(self, rng: random.Random) -> Theme:
        """Return a recognisable variation."""
        change = rng.choice((Cell.inverted, Cell.ornamented, Cell.thinned))
        if rng.random() < 0.6:
            return replace(self, answer=change(self.answer))
        return replace(self, statement=change(self.statement))

    def cells(self, num_bars: int) -> list[Cell]:
        """Return statement, answer, statement, ... and the cadence last."""
        body = [(self.statement, self.answer)[bar % 2] for bar in range(num_bars - 1)]
        return [*body, self.cadence]


@dataclass(frozen=True, slots=True)
class MelodyNote:
    """A note of a melody, not yet assigned to an instrument."""

    beat: float
    beats: float
    pitch: int
    strong: bool


def new_theme(beats_per_bar: int, liveliness: float, rng: random.Random) -> Theme:
    """Draw a theme; `liveliness` (0..1) is the probability of a dense cell."""

    def cell(pool: tuple[tuple[float, ...], ...]) -> Cell:
        onsets = rng.choice(pool)
        return Cell(onsets, tuple(rng.choice(_STEPS) for _ in onsets), beats_per_bar)

    def body() -> Cell:
        return cell((_MOVING_CELLS if rng.random() < liveliness else _CALM_CELLS)[beats_per_bar])

    return Theme(body(), body(), cell(_CADENCE_CELLS[beats_per_bar]))


@dataclass(frozen=True, slots=True)
class Compass:
    """The compass of a melody: a key, from `low` to `high`."""

    key: Key
    low: int
    high: int

    def holds(self, step: int) -> bool:
        """Return whether the scale step is in range."""
        return self.low <= self.key.pitch(step) <= self.high

    def nearest(self, step: int, fits: Callable[[int], bool]) -> int:
        """Return the nearest step that fits and is in range, the lower of two; `step` itself if there is none."""
        near = sorted(range(step - 9, step + 10), key=lambda s: (abs(s - step), s))
        return next((s for s in near if fits(s) and self.holds(s)), step)


@dataclass(frozen=True, slots=True)
class _Slot:
    """A slot for a note: its onset, its length, the step of the theme, and the current chord."""

    beat: float
    beats: float
    move: int
    chord: Chord
    strong: bool
    closing: bool


class Singer:
    """Fits themes to chords; its state is the last note, from which the next phrase continues."""

    def __init__(self) -> None:
        self.last_pitch: int | None = None

    def sing(
        self, theme: Theme, chords: tuple[Chord, ...], beats_per_bar: int, compass: Compass, home: bool
    ) -> list[MelodyNote]:
        """Compose a melody over `chords`, one per bar; `home` ends it on the tonic."""
        low, high = compass.low, compass.high
        start = (low + high) // 2 if self.last_pitch is None else min(max(self.last_pitch, low + 3), high - 3)
        step, repeats = compass.key.nearest_step(start), False
        notes = []
        for slot in _slots(theme, chords, beats_per_bar):
            before, step = step, _next_step(step, slot, compass, repeats)
            repeats = step == before
            if slot.closing and home:
                step = compass.nearest(step, lambda s: s % 7 == 0)
            notes.append(MelodyNote(slot.beat, slot.beats, compass.key.pitch(step), slot.strong))
        self.last_pitch = notes[-1].pitch
        return notes


def _slots(theme: Theme, chords: tuple[Chord, ...], beats_per_bar: int) -> Iterator[_Slot]:
    for bar, (cell, chord) in enumerate(zip(theme.cells(len(chords)), chords, strict=True)):
        ends = (*cell.onsets[1:], float(beats_per_bar))
        for i, (onset, end, move) in enumerate(zip(cell.onsets, ends, cell.steps, strict=True)):
            closing = bar == len(chords) - 1 and i == len(cell.onsets) - 1
            strong = onset == 0 or (onset == 2 and beats_per_bar == 4) or end - onset >= 1.5 or closing
            breath = min(0.5, 0.25 * (end - onset)) if closing else 0.0
            yield _Slot(bar * beats_per_bar + onset, end - onset - breath, move, chord, strong, closing)


def _next_step(step: int, slot: _Slot, compass: Compass, repeated: bool) -> int:
    """Return the scale step after `step`: chord tones on strong beats, passing and neighbour notes between them.

    A note may be repeated once.
    """
    chord = slot.chord
    wanted = step + slot.move if compass.holds(step + slot.move) else step - slot.move
    if slot.strong or abs(wanted - step) > 1 or (slot.beats >= 1 and _rubs(wanted, chord, compass.key)):
        wanted = compass.nearest(wanted, chord.has_step)
    if abs(wanted - step) > _LARGEST_LEAP:
        wanted = compass.nearest(step, chord.has_step)
    if wanted == step and repeated:
        wanted = compass.nearest(step + slot.move, lambda s: s != step and chord.has_step(s))
    return wanted


def _rubs(step: int, chord: Chord, key: Key) -> bool:
    """Return whether the step is a semitone from a tone of the chord."""
    pitch_class = key.pitch(step) % 12
    return any((pitch_class - tone) % 12 in (1, 11) for tone in chord.pitch_classes(key))
