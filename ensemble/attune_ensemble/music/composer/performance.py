"""Performance: conversion of a score's notes to timed strokes with gains, with humanised timing and dynamics."""

from __future__ import annotations

import random
from dataclasses import dataclass

from attune_ensemble.music.composer.dynamics import DB_PER_VELOCITY
from attune_ensemble.music.composer.instruments import ROLE_LEVEL_DB, TABLE
from attune_ensemble.music.composer.score import Note, Phrase

TIMING_LIMIT_S = 0.014
"""How much earlier or later than written a stroke begins at most, but for the rolling of chords."""

_TIMING_SPREAD_S = 0.006
_VELOCITY_SPREAD = 2.5
_MEDIUM_VELOCITY = 64
_BRIGHTNESS_STEPS = ((46, -12), (60, -8), (74, -4), (86, -2))
_ROLL_S = 0.018


@dataclass(frozen=True, slots=True)
class Stroke:
    """One note as rendered: seconds from the start of the piece, gain, and attenuation of upper partials in dB."""

    start_s: float
    held_s: float
    pitch: int
    instrument: str
    gain: float
    brightness_db: int


def perform(phrase: Phrase, seed: int, gain_db: float = 0.0) -> list[Stroke]:
    """Return the strokes of a phrase, in order of time, with an additional `gain_db`; deterministic for a seed."""
    rng = random.Random(f"attune performance {seed} {phrase.start_s:.6f}")
    strokes = []
    chord_tones: dict[tuple[float, str], int] = {}
    for note in phrase.notes:
        place = chord_tones.get((note.start_beat, note.instrument), 0)
        chord_tones[note.start_beat, note.instrument] = place + 1
        strokes.append(_stroke(note, phrase, place, gain_db, rng))
    return sorted(strokes, key=lambda stroke: (stroke.start_s, stroke.instrument, stroke.pitch))


def _stroke(note: Note, phrase: Phrase, place_in_chord: int, gain_db: float, rng: random.Random) -> Stroke:
    late_s = min(max(rng.gauss(0.0, _TIMING_SPREAD_S), -TIMING_LIMIT_S), TIMING_LIMIT_S)
    late_s += 0.0 if TABLE[note.instrument].sustained else _ROLL_S * place_in_chord
    velocity = note.velocity + rng.gauss(0.0, _VELOCITY_SPREAD)
    level_db = DB_PER_VELOCITY * (velocity - _MEDIUM_VELOCITY)
    level_db += ROLE_LEVEL_DB[note.role] + TABLE[note.instrument].level_db
    level_db += gain_db
    return Stroke(
        start_s=max(0.0, phrase.start_s + note.start_beat * phrase.seconds_per_beat + late_s),
        held_s=note.duration_beats * phrase.seconds_per_beat,
        pitch=note.pitch,
        instrument=note.instrument,
        gain=10 ** (level_db / 20),
        brightness_db=next((db for below, db in _BRIGHTNESS_STEPS if note.velocity < below), 0),
    )
