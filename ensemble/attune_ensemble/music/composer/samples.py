"""The sampled instruments: loaded on first use, tuned to each pitch by resampling, cached within a memory budget."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.fft
import soundfile

from attune_client.protocol.models import MUSIC_SAMPLE_RATE

SAMPLE_RATE = MUSIC_SAMPLE_RATE

_FOLDER = Path(__file__).parent / "samples"
_CACHE_BYTES = 96 * 2**20
_NOTE_LEVEL_DB = -23.0
_NOTE_PEAK_DB = -10.5
_SAMPLE_PEAK = 0.7  # of every file
_NOTE_HOPS = 4
_LENGTHS_S = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
"""Lengths to which notes are truncated, so that short notes of long samples are cheap."""
_CUT_FRAMES = 512
_CUT_FADE = np.cos(np.linspace(0, np.pi / 2, _CUT_FRAMES, dtype=np.float32)) ** 2

Audio = npt.NDArray[np.float32]  # [C, N]


@dataclass(frozen=True, slots=True)
class Zone:
    """One recorded note: its pitch, its file, its K-weighted power every 100 ms, and its normalisation gain."""

    pitch: int
    file: str
    powers: npt.NDArray[np.float64]
    gain: float

    @classmethod
    def of(cls, pitch: int, file: str, levels_db: npt.NDArray[np.float64]) -> Zone:
        """Return a zone whose gain normalises its loudest 400 ms to -23 dB, or its peak to -10.5 dB if that is quieter.

        Without the limit of the peak, short plucked notes would be too loud.
        """
        powers = 10 ** (levels_db / 10)
        loudest = np.convolve(powers, np.ones(_NOTE_HOPS) / _NOTE_HOPS).max()
        gain = min(10 ** (_NOTE_LEVEL_DB / 20) / np.sqrt(loudest), 10 ** (_NOTE_PEAK_DB / 20) / _SAMPLE_PEAK)
        return cls(pitch, file, powers, float(gain))


class SampleLibrary:
    """All instruments; `note` returns one tuned note. Thread-safe."""

    def __init__(self) -> None:
        self._zones_read = _Cache(_CACHE_BYTES // 3)
        self._notes_tuned = _Cache(_CACHE_BYTES * 2 // 3)
        self._lock = threading.Lock()

    @cached_property
    def zones(self) -> dict[str, tuple[Zone, ...]]:
        """Return the zones of every instrument, ascending in pitch."""
        index = json.loads((_FOLDER / "index.json").read_text())
        return {
            name: tuple(Zone.of(z["pitch"], z["file"], np.array(z["levels"]) / 10) for z in zones)
            for name, zones in index["zones"].items()
        }

    def zone(self, instrument: str, pitch: int) -> Zone:
        """Return the recorded note nearest to `pitch`; the higher of two, since lowering a pitch never aliases."""
        return min(self.zones[instrument], key=lambda zone: (abs(zone.pitch - pitch), -zone.pitch))

    def note(self, instrument: str, pitch: int, brightness_db: int, length_s: float) -> Audio:
        """Return one normalised note, [1 or 2, N]: at least its first `length_s` seconds, if it is that long.

        `brightness_db` is the gain of its upper partials, 0 or less.
        """
        zone = self.zone(instrument, pitch)
        enough_s = next((length for length in _LENGTHS_S if length >= length_s), _LENGTHS_S[-1])
        key = (instrument, pitch, brightness_db, enough_s)
        with self._lock:
            return self._notes_tuned.get(key, lambda: self._tuned(zone, pitch, brightness_db, enough_s))

    def _tuned(self, zone: Zone, pitch: int, brightness_db: int, length_s: float) -> Audio:
        semitones_up = 0 if pitch <= zone.pitch else max(3, pitch - zone.pitch)
        num_frames = round(length_s * 2 ** (semitones_up / 12) * SAMPLE_RATE) + _CUT_FRAMES
        audio = self._zones_read.get((zone.file, num_frames), lambda: _read(zone.file, num_frames))
        if pitch != zone.pitch or brightness_db:
            audio = _retuned(audio, zone.pitch, pitch, brightness_db)
        return audio * np.float32(zone.gain)


class _Cache:
    """LRU cache of arrays, bounded by `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._arrays: OrderedDict[tuple[str | float, ...], Audio] = OrderedDict()

    def get(self, key: tuple[str | float, ...], make: Callable[[], Audio]) -> Audio:
        """Return the array of `key`, created if it is not cached."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = make()
        self._arrays[key] = array
        self._num_bytes += array.nbytes
        while self._num_bytes > self._max_bytes and len(self._arrays) > 1:
            self._num_bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


def _read(file: str, num_frames: int) -> Audio:
    """Read the beginning of a sample, with a short fade-out at the cut."""
    audio, _ = soundfile.read(_FOLDER / file, num_frames, dtype="float32", always_2d=True)
    if len(audio) == num_frames:
        audio[-_CUT_FRAMES:] *= _CUT_FADE[:, None]
    return np.ascontiguousarray(audio.T)


def _retuned(audio: Audio, from_pitch: int, to_pitch: int, brightness_db: int) -> Audio:
    """Resample a note to another pitch and attenuate its upper partials, in the frequency domain.

    The attenuation increases smoothly above the second partial, to `brightness_db` two octaves up. Both ends of a
    sample are silent, so circular wrap-around is inaudible.
    """
    ratio = 2.0 ** ((from_pitch - to_pitch) / 12)
    num_from, num_to = _transform_lengths(audio.shape[1], ratio)
    spectrum = scipy.fft.rfft(audio, num_from)
    frequency = np.arange(spectrum.shape[1]) * (SAMPLE_RATE / num_from)
    corner_hz = max(880 * 2 ** ((from_pitch - 69) / 12), 400.0)
    octaves_above = np.log2(np.maximum(frequency, corner_hz) / corner_hz)
    spectrum *= (10 ** (brightness_db * np.minimum(octaves_above, 2) / 40)).astype(np.float32)
    num_bins = min(spectrum.shape[1], num_to // 2 + 1)
    audio_to = scipy.fft.irfft(spectrum[:, :num_bins], num_to) * np.float32(num_to / num_from)
    return np.ascontiguousarray(audio_to[:, : int(audio.shape[1] * ratio)])


def _transform_lengths(num_frames: int, ratio: float) -> tuple[int, int]:
    """Return two fast transform lengths, the first above `num_frames`, whose quotient is `ratio` within 0.7 cents."""
    num_from = scipy.fft.next_fast_len(num_frames + 256)
    while True:
        num_to = scipy.fft.next_fast_len(round(num_from * ratio))
        if abs(num_to / num_from / ratio - 1) < 4e-4:
            return num_from, num_to
        num_from = scipy.fft.next_fast_len(num_from + 1)
