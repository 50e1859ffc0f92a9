"""Dynamics: how hard each level is played, and how loud it is heard beside the piece's first.

A piece is brought to the same loudness whatever its dynamics are; they colour it. Where they change on the way, the
listener should hear a change of loudness, but not the whole of the players' range: 1.5 dB a level instead of about 3.
"""

from __future__ import annotations

__all__ = ["DB_PER_VELOCITY", "VELOCITY", "lift_db", "stroke_gain_db"]

VELOCITY = {"pp": 40, "p": 52, "mp": 64, "mf": 78, "f": 92}
"""MIDI velocity of each level, from the softest to the loudest."""

DB_PER_VELOCITY = 0.22

_LEVEL_DB = {"pp": -3.0, "p": -1.5, "mp": 0.0, "mf": 1.5, "f": 3.0}


def lift_db(dynamics: str, first: str) -> float:
    """Return the difference in loudness between a phrase of these dynamics and one of the piece's first, in dB."""
    return _LEVEL_DB[dynamics] - _LEVEL_DB[first]


def stroke_gain_db(dynamics: str, first: str) -> float:
    """Gain of a phrase's strokes, in dB, that brings the contrast of their velocities down to `lift_db`."""
    return lift_db(dynamics, first) - DB_PER_VELOCITY * (VELOCITY[dynamics] - VELOCITY[first])
