"""Mastering: a feed-forward gain that brings a piece to -18 LUFS in a single pass, and the limiter.

Where the dynamics change on the way, it is the first ones that are brought to -18 LUFS, and the others lie above or
below as their strokes do.

The score says what will be played and every sample's K-weighted level is known, so the loudness of the next half minute
can be forecast before a note of it is rendered, as if the plan stayed what it is now; where it does not, the forecast
is made anew. What the forecast misses (beating, the room) is measured while the piece plays, and corrected slowly. All
steps are those of blocks, so that the size of chunks changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from attune_ensemble.music.composer.instruments import TABLE
from attune_ensemble.music.composer.loudness import LEVEL_HOP_S, integrated_loudness
from attune_ensemble.music.composer.performance import Stroke
from attune_ensemble.music.composer.room import BLOCK
from attune_ensemble.music.composer.samples import SAMPLE_RATE, SampleLibrary

Frames = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

TARGET_LUFS = -18.0
CEILING_DB = -1.5

_ROOM_DECAY_HOPS = 24
_ROOM_DECAY_S = 0.29  # of energy, by a factor of e: 2 s for 60 dB
_LOUDNESS_PER_BRIGHTNESS_DB = 0.12
_PAST_S = 60.0


class Forecast:
    """Forecast of K-weighted power on the level grid, from strokes. Keeps one minute of the past."""

    def __init__(self, library: SampleLibrary) -> None:
        self._library = library
        self._start_hop = 0
        self._dry: FloatArray = np.zeros(0)
        self._sent: FloatArray = np.zeros(0)
        self._lift: FloatArray = np.zeros(0)

    def add(self, strokes: Iterable[Stroke], end_s: float, lift_db: float = 0.0) -> None:
        """Take in the strokes of a phrase; the forecast then reaches at least to `end_s`.

        `lift_db` is how much louder than the beginning of the piece the phrase shall be heard.
        """
        self._reach(math.ceil(end_s / LEVEL_HOP_S), 10 ** (lift_db / 10))
        for stroke in strokes:
            self._add(stroke)

    def copy(self) -> Forecast:
        """Return a forecast that goes on from here on its own."""
        other = Forecast(self._library)
        other.become(self)
        return other

    def become(self, other: Forecast) -> None:
        """Take over what another forecast holds."""
        self._start_hop = other._start_hop
        self._dry, self._sent, self._lift = other._dry.copy(), other._sent.copy(), other._lift.copy()

    def forget_before(self, position_s: float) -> None:
        """Drop what is more than a minute before `position_s`."""
        num_old = int((position_s - _PAST_S) / LEVEL_HOP_S) - self._start_hop
        if num_old > 0:
            self._dry, self._sent, self._lift = (curve[num_old:] for curve in (self._dry, self._sent, self._lift))
            self._start_hop += num_old

    def power(self) -> FloatArray:
        """Power of all hops in the window of the forecast, including reverberation."""
        decay = np.exp(-np.arange(_ROOM_DECAY_HOPS) * LEVEL_HOP_S / _ROOM_DECAY_S)
        return self._dry + np.convolve(self._sent, decay / decay.sum())[: len(self._dry)]

    def power_without_lift(self) -> FloatArray:
        """The power without the differences in dynamics from the beginning of the piece."""
        return self.power() / self._lift

    def power_between(self, start_s: float, end_s: float) -> float:
        """Return the mean power from `start_s` to `end_s`."""
        first = int(start_s / LEVEL_HOP_S) - self._start_hop
        last = max(first + 1, math.ceil(end_s / LEVEL_HOP_S) - self._start_hop)
        return float(np.mean(self.power()[first:last])) if first < len(self._dry) else 0.0

    def _reach(self, end_hop: int, lift: float) -> None:
        missing = end_hop - self._start_hop - len(self._dry)
        if missing > 0:
            self._dry = np.concatenate([self._dry, np.zeros(missing)])
            self._sent = np.concatenate([self._sent, np.zeros(missing)])
            self._lift = np.concatenate([self._lift, np.full(missing, lift)])

    def _add(self, stroke: Stroke) -> None:
        zone = self._library.zone(stroke.instrument, stroke.pitch)
        facts = TABLE[stroke.instrument]
        num_hops = min(len(zone.powers), math.ceil((stroke.held_s + facts.release_s / 2) / LEVEL_HOP_S))
        first = max(0, round(stroke.start_s / LEVEL_HOP_S) - self._start_hop)
        gain_db = _LOUDNESS_PER_BRIGHTNESS_DB * stroke.brightness_db
        powers = zone.powers[:num_hops] * (zone.gain * stroke.gain) ** 2 * 10 ** (gain_db / 10)
        here = slice(first, first + num_hops)
        num_inside = len(self._dry[here])
        self._dry[here] += powers[:num_inside]
        self._sent[here] += facts.send**2 * 2 * powers[:num_inside]


class GainRider:
    """The gain of each block: by the forecast, corrected by the ratio of measured to forecast loudness."""

    _MEMORY_S = 15.0
    _TRUST_S = 3.0
    _MAX_STEP_DB = 0.12
    _MAX_CORRECTION_DB = 4.0

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast
        self._measured = 0.0
        self._foreseen = 0.0
        self._gain_db: float | None = None
        self._position_s = 0.0

    def ramp(self, measured_power: float) -> Frames:
        """Return the gain [BLOCK] of the next block, whose K-weighted power before gain is `measured_power`."""
        end_s = self._position_s + BLOCK / SAMPLE_RATE
        keep = math.exp(-BLOCK / SAMPLE_RATE / self._MEMORY_S)
        self._measured = keep * self._measured + measured_power
        self._foreseen = keep * self._foreseen + self._forecast.power_between(self._position_s, end_s)
        self._position_s = end_s
        wanted_db = self._wanted_db()
        before_db = wanted_db if self._gain_db is None else self._gain_db
        step_db = min(max(wanted_db - before_db, -self._MAX_STEP_DB), self._MAX_STEP_DB)
        self._gain_db = before_db + step_db
        return np.float32(10.0) ** (np.linspace(before_db, self._gain_db, BLOCK, dtype=np.float32) / np.float32(20))

    def _wanted_db(self) -> float:
        self._forecast.forget_before(self._position_s)
        power = self._forecast.power_without_lift()
        doubt = self._TRUST_S * SAMPLE_RATE / BLOCK * float(np.mean(power)) + 1e-12
        miss_db = 10 * math.log10((self._measured + doubt) / (self._foreseen + doubt))
        miss_db = min(max(miss_db, -self._MAX_CORRECTION_DB), self._MAX_CORRECTION_DB)
        return TARGET_LUFS - integrated_loudness(power) - miss_db


class Limiter:
    """A look-ahead true-peak limiter; delays the audio by `DELAY` frames."""

    _HOP = 32
    _LOOK_AHEAD_HOPS = 8
    _RELEASE_HOPS = 150
    _HELD_HOPS = _LOOK_AHEAD_HOPS + 3  # one more for the delay of the interpolation filter
    DELAY = _HOP * _LOOK_AHEAD_HOPS

    def __init__(self) -> None:
        self._ceiling = 10 ** (CEILING_DB / 20)
        self._pending: Frames = np.zeros((2, self.DELAY), np.float32)
        self._tail: Frames = np.zeros((2, 2 * _HALF_TAPS), np.float32)
        self._released = np.ones(self._HELD_HOPS - 1 + self._LOOK_AHEAD_HOPS)

    def process(self, block: Frames) -> Frames:
        """Limit a block [2, BLOCK]; returns it delayed by `DELAY` frames and below the ceiling."""
        heard = np.concatenate([self._tail, block], axis=1)
        self._tail = heard[:, -2 * _HALF_TAPS :]
        released = self._release(self._wanted(heard))
        late = np.concatenate([self._pending, block], axis=1)
        self._pending = late[:, BLOCK:]
        late = late[:, :BLOCK]
        history = np.concatenate([self._released, released])
        self._released = history[-len(self._released) :]
        if history.min() == 1.0:
            return late
        return late * self._smooth(history)

    def _wanted(self, heard: Frames) -> FloatArray:
        """Return the gain that each hop requires on its own."""
        if np.abs(heard).max() < self._ceiling / math.sqrt(2):
            return np.ones(BLOCK // self._HOP)
        peaks = _true_peaks(heard).reshape(-1, self._HOP).max(axis=1)
        return np.minimum(1.0, self._ceiling / np.maximum(peaks, 1e-9))

    def _release(self, wanted: FloatArray) -> FloatArray:
        """Apply instant attack and a release of about 150 ms."""
        gain = float(self._released[-1])
        if gain == 1.0 and wanted.min() == 1.0:
            return wanted
        released = np.empty_like(wanted)
        for i, limit in enumerate(wanted):
            gain = min(float(limit), gain + (1.0 - gain) / self._RELEASE_HOPS)
            gain = 1.0 if gain > 0.9999 else gain
            released[i] = gain
        return released

    def _smooth(self, history: FloatArray) -> Frames:
        """Return the gain [BLOCK]: minimum over the held hops, averaged over the look-ahead, linear between hops."""
        held = np.lib.stride_tricks.sliding_window_view(history, self._HELD_HOPS).min(axis=1)
        sums = np.cumsum(np.concatenate([[0.0], held]))
        nodes = (sums[self._LOOK_AHEAD_HOPS :] - sums[: -self._LOOK_AHEAD_HOPS]) / self._LOOK_AHEAD_HOPS
        frames = np.arange(BLOCK) / self._HOP
        return np.interp(frames, np.arange(len(nodes)), nodes).astype(np.float32)


_HALF_TAPS = 8
_PHASES = 4


def _interpolation_kernels() -> Frames:
    """Return windowed-sinc kernels [3, 16] that interpolate at 1/4, 1/2 and 3/4 of a frame."""
    offsets = np.arange(-_HALF_TAPS + 1, _HALF_TAPS + 1)
    shifts = np.arange(1, _PHASES)[:, None] / _PHASES
    distance = offsets - shifts
    window = np.cos(np.pi * distance / (2 * _HALF_TAPS + 1)) ** 2
    return (np.sinc(distance) * window).astype(np.float32)


_KERNELS = _interpolation_kernels()


def _true_peaks(heard: Frames) -> Frames:
    """Return the largest magnitude [BLOCK] at and between frames, for a block preceded by 16 frames of the past."""
    windows = np.lib.stride_tricks.sliding_window_view(heard, 2 * _HALF_TAPS, axis=1)[:, -BLOCK:]
    between = np.abs(windows @ _KERNELS.T).max(axis=2)
    return np.maximum(between, np.abs(heard[:, -BLOCK:])).max(axis=0)
