"""Notes of the church modes, spelt out by hand: what the composer's own tables are held against."""

from __future__ import annotations

# The white keys from each mode's own tonic, and how far that tonic lies above C.
_WHITE_KEYS = frozenset({0, 2, 4, 5, 7, 9, 11})
_TONIC_ON_WHITE_KEYS = {"ionian": 0, "dorian": 2, "phrygian": 4, "lydian": 5, "mixolydian": 7, "aeolian": 9}
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def pitch_classes(tonic: str, mode: str) -> frozenset[int]:
    """The seven pitch classes of a key such as ("Bb", "lydian"); C is 0."""
    root = _SEMITONES[tonic[0]] + {"": 0, "b": -1, "#": 1}[tonic[1:]]
    return frozenset((root + key - _TONIC_ON_WHITE_KEYS[mode]) % 12 for key in _WHITE_KEYS)
