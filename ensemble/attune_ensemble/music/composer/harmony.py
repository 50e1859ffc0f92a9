"""Harmony: modes, diatonic chords, progressions with their cadences, and voice-leading.

A scale step counts the notes of the mode upwards from the tonic in the octave of middle C: step 0 is the tonic, step 7
the tonic an octave above. Progressions are diatonic and avoid the diminished triad.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations, pairwise

from attune_client.protocol.music_spec import TONICS

INTERVALS = {
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
}
"""Intervals of the seven notes of each mode above the tonic, in semitones."""

_MIDDLE_C = 60


@dataclass(frozen=True, slots=True)
class Key:
    """A mode on a tonic (pitch class, 0 is C)."""

    tonic: int
    mode: str

    @classmethod
    def named(cls, tonic: str, mode: str) -> Key:
        """Return the key of a specification."""
        return cls(TONICS.index(tonic), mode)

    @property
    def pitch_classes(self) -> frozenset[int]:
        """The seven pitch classes of the key."""
        return frozenset((self.tonic + interval) % 12 for interval in INTERVALS[self.mode])

    def pitch(self, step: int) -> int:
        """Return the MIDI pitch of a scale step."""
        octave, degree = divmod(step, 7)
        return _MIDDLE_C + self.tonic + 12 * octave + INTERVALS[self.mode][degree]

    def nearest_step(self, pitch: int) -> int:
        """Return the highest scale step that is not above `pitch`."""
        octave, interval = divmod(pitch - _MIDDLE_C - self.tonic, 12)
        degree = max(i for i, semitones in enumerate(INTERVALS[self.mode]) if semitones <= interval)
        return 7 * octave + degree


@dataclass(frozen=True, slots=True)
class Chord:
    """A diatonic chord: the degree of its root (0..6) and its tones as scale steps above the root."""

    degree: int
    tones: tuple[int, ...] = (0, 2, 4)

    def has_step(self, step: int) -> bool:
        """Return whether a scale step is a tone of the triad."""
        return (step - self.degree) % 7 in (0, 2, 4)

    def pitch_classes(self, key: Key) -> tuple[int, ...]:
        """Return the pitch classes of its tones, root first."""
        return tuple(key.pitch(self.degree + tone) % 12 for tone in self.tones)

    def pitches_between(self, key: Key, low: int, high: int) -> list[int]:
        """Return all its tones from `low` to `high`, ascending."""
        classes = self.pitch_classes(key)
        return [pitch for pitch in range(low, high + 1) if pitch % 12 in classes]


# Four bars each, in degrees counted from 1. "open" ends away from the tonic (a half cadence).
_OPEN = {
    "ionian": ("1 5 6 4", "1 6 4 5", "1 3 4 5", "1 4 6 5", "1 6 2 5", "6 4 1 5"),
    "lydian": ("1 2 6 5", "1 5 2 5", "1 3 6 2", "1 2 3 5", "6 2 1 5"),
    "mixolydian": ("1 7 4 5", "1 5 7 4", "1 6 4 7", "1 4 5 7", "1 2 7 4"),
    "dorian": ("1 4 3 7", "1 4 1 5", "1 3 4 7", "1 7 4 5", "1 2 3 4"),
    "aeolian": ("1 6 3 7", "1 4 6 5", "1 3 6 7", "1 5 6 7", "1 6 4 5"),
    "phrygian": ("1 2 3 7", "1 6 2 7", "1 4 6 7", "1 3 6 2", "1 7 6 2"),
}
_CLOSED = {
    "ionian": ("1 4 5 1", "6 4 5 1", "1 2 5 1", "4 3 5 1", "6 2 4 1"),
    "lydian": ("1 2 5 1", "6 2 5 1", "3 2 7 1", "1 3 2 1", "6 5 2 1"),
    "mixolydian": ("1 4 7 1", "6 7 4 1", "1 2 7 1", "5 4 7 1", "6 4 5 1"),
    "dorian": ("1 4 7 1", "3 4 5 1", "1 2 4 1", "3 7 4 1", "1 5 4 1"),
    "aeolian": ("6 3 7 1", "1 6 7 1", "6 4 5 1", "4 6 7 1", "3 6 4 1"),
    "phrygian": ("1 6 2 1", "6 3 2 1", "1 4 7 1", "6 4 2 1", "3 6 7 1"),
}
_LEADING_HOME = {
    "ionian": ("4 5", "2 5", "4 4"),
    "lydian": ("2 5", "6 2"),
    "mixolydian": ("4 7", "7 4"),
    "dorian": ("3 4", "4 7"),
    "aeolian": ("6 7", "4 5"),
    "phrygian": ("6 2", "4 7"),
}


def progression(mode: str, num_bars: int, ending: str, rng: random.Random) -> tuple[int, ...]:
    """Return degrees (0..6), one per bar.

    `ending` is "open", "closed" (on the tonic), or "home" (on a cadence that the following tonic resolves).
    """
    bars = _degrees(rng.choice(_CLOSED[mode] if ending == "closed" else _OPEN[mode]))
    if ending == "home":
        bars = bars[:2] + _degrees(rng.choice(_LEADING_HOME[mode]))
    if ending == "open" and num_bars < len(bars):
        return bars[:num_bars]
    while len(bars) < num_bars:
        bars = _degrees(rng.choice(_OPEN[mode]))[: num_bars - len(bars)] + bars
    return bars[len(bars) - num_bars :]


def _degrees(numerals: str) -> tuple[int, ...]:
    return tuple(int(numeral) - 1 for numeral in numerals.split())


def coloured(degree: int, key: Key, rng: random.Random, chance: float) -> Chord:
    """Return the triad on `degree`, at random with a ninth or seventh that is a whole tone from its neighbours."""
    if rng.random() >= chance:
        return Chord(degree)
    root, third, fifth = (key.pitch(degree + tone) for tone in (0, 2, 4))
    ninth, seventh = key.pitch(degree + 1), key.pitch(degree + 6)
    options = []
    if ninth - root == 2 and third - ninth == 2:
        options.append(Chord(degree, (0, 1, 2, 4)))
    if seventh - root == 10 and seventh - fifth == 3 and third - root == 3:
        options.append(Chord(degree, (0, 2, 4, 6)))
    return rng.choice(options) if options else Chord(degree)


def voicing(chord: Chord, key: Key, low: int, high: int, num_voices: int, previous: tuple[int, ...]) -> tuple[int, ...]:
    """Return the voicing of `chord` in `low`..`high` with the least motion from `previous` (ascending pitches)."""
    candidates = combinations(chord.pitches_between(key, low, high), num_voices)
    usable = [pitches for pitches in candidates if _is_clear(pitches)]
    if not usable:
        return tuple(chord.pitches_between(key, low, high)[:num_voices])
    third = key.pitch(chord.degree + 2) % 12
    return min(usable, key=lambda pitches: _cost(pitches, previous, third, (low + high) / 2))


def _is_clear(pitches: tuple[int, ...]) -> bool:
    """Return whether there are no seconds below F4, no semitones, and no gaps of more than an octave."""
    gaps = [(upper - lower, lower) for lower, upper in pairwise(pitches)]
    return all(gap >= (3 if lower < 65 else 2) and gap <= 12 for gap, lower in gaps)


def _cost(pitches: tuple[int, ...], previous: tuple[int, ...], third: int, centre: float) -> float:
    classes = {pitch % 12 for pitch in pitches}
    cost = 5.0 * (len(pitches) - len(classes)) + (8.0 if third not in classes else 0.0)
    cost += 0.5 * abs(sum(pitches) / len(pitches) - centre)
    if len(previous) == len(pitches):
        moves = [new - old for new, old in zip(pitches, previous, strict=True)]
        cost += sum(abs(move) for move in moves)
        cost += 4.0 * _parallel_perfect(pitches, previous)
    return cost


def _parallel_perfect(pitches: tuple[int, ...], previous: tuple[int, ...]) -> int:
    """Return the number of pairs of voices that move in parallel fifths or octaves."""
    count = 0
    for i, j in combinations(range(len(pitches)), 2):
        before, after = (previous[j] - previous[i]) % 12, (pitches[j] - pitches[i]) % 12
        count += before == after and before in (0, 7) and pitches[i] != previous[i]
    return count
