"""The renderer: sums the strokes of the score on three buses (left, right, send), a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from attune_ensemble.music.composer.instruments import TABLE
from attune_ensemble.music.composer.performance import Stroke
from attune_ensemble.music.composer.room import BLOCK
from attune_ensemble.music.composer.samples import SAMPLE_RATE, SampleLibrary

Frames = npt.NDArray[np.float32]

_LONGEST_NOTE_S = 12.0
_SWELL_FROM_S = 1.4


class Renderer:
    """Renders strokes to the dry mix, [3, BLOCK] per call, in constant memory."""

    def __init__(self, library: SampleLibrary) -> None:
        self._library = library
        self._ahead: Frames = np.zeros((3, round(_LONGEST_NOTE_S * SAMPLE_RATE) + BLOCK), np.float32)
        self._position = 0

    @property
    def block_end(self) -> int:
        """The frame of the piece at which the next block ends."""
        return self._position + BLOCK

    def block(self, strokes: Iterable[Stroke]) -> Frames:
        """Render the next block of left, right and send; `strokes` are those that begin in it."""
        for stroke in strokes:
            self._add(stroke)
        block = self._ahead[:, :BLOCK].copy()
        self._ahead[:, :-BLOCK] = self._ahead[:, BLOCK:]
        self._ahead[:, -BLOCK:] = 0
        self._position += BLOCK
        return block

    def _add(self, stroke: Stroke) -> None:
        facts = TABLE[stroke.instrument]
        length_s = stroke.held_s + facts.release_s
        sound = self._library.note(stroke.instrument, stroke.pitch, stroke.brightness_db, length_s)
        envelope = note_envelope(sound.shape[1], stroke.held_s, facts.release_s, facts.sustained)
        shaped = sound[:, : len(envelope)] * (envelope * np.float32(stroke.gain))
        start = round(stroke.start_s * SAMPLE_RATE) - self._position
        place = self._ahead[:, start : start + shaped.shape[1]]
        left, right = pan_gains(facts.pan)
        if len(shaped) == 1:
            place[0] += left * shaped[0]
            place[1] += right * shaped[0]
            place[2] += np.float32(facts.send) * shaped[0]
        else:
            place[0] += shaped[0]
            place[1] += shaped[1]
            place[2] += np.float32(facts.send * math.sqrt(0.5)) * (shaped[0] + shaped[1])


def pan_gains(pan: float) -> tuple[np.float32, np.float32]:
    """Return left and right gain by equal-power panning, for a pan of -1..1."""
    angle = (pan + 1) * math.pi / 4
    return np.float32(math.cos(angle)), np.float32(math.sin(angle))


def note_envelope(num_available: int, held_s: float, release_s: float, swells: bool) -> Frames:
    """Return the envelope of a note from a sample of `num_available` frames: sustain, then release."""
    release = min(round(release_s * SAMPLE_RATE), num_available // 2)
    held = min(round(held_s * SAMPLE_RATE), num_available - release)
    envelope = np.ones(held + release, np.float32)
    envelope[held:] = np.cos(np.linspace(0, np.pi / 2, release, dtype=np.float32)) ** 2
    if swells and held > _SWELL_FROM_S * SAMPLE_RATE:
        corners = np.array([0, 0.45 * held, held, held + release])
        envelope *= np.interp(np.arange(held + release), corners, [0.82, 1.0, 0.82, 0.8]).astype(np.float32)
    return envelope
