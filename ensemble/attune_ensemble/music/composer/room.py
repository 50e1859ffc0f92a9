"""Reverberation and equalisation of the mix, as one partitioned FFT convolution.

The dry mix passes a 30 Hz high-pass and a gentle tilt; the send passes a synthetic reverberation as well. The same
spectra also yield the K-weighted power of the result, at the cost of two more inverse transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft

from attune_ensemble.music.composer.loudness import high_pass, high_shelf, k_weighting
from attune_ensemble.music.composer.samples import SAMPLE_RATE

BLOCK = 8192
"""Frames per block of rendering; chunks are cut from blocks, so that their size does not affect the audio."""

Spectra = npt.NDArray[np.complex64]
Frames = npt.NDArray[np.float32]

_FFT = 2 * BLOCK
_REVERB_S = 2.3
_PREDELAY_S = 0.022
_DECAY_60_DB_S = ((250.0, 1.9), (1000.0, 2.1), (3000.0, 1.5), (8000.0, 0.8))
_EARLY_ECHOES = ((0.013, 0.30), (0.019, 0.26), (0.029, 0.22), (0.037, 0.17), (0.053, 0.12))
_ROOM_SEED = 20_240_607
_CROSSFADE: Frames = np.sin(np.linspace(0, np.pi / 2, BLOCK, dtype=np.float32)) ** 2
_TILT_DB = {"pp": -3.0, "p": -2.0, "mp": -1.0, "mf": 0.0, "f": 1.0}


class Room:
    """Filters blocks of the mix; keeps the past that it needs. One for each piece.

    It has the tone of `dynamics`; after `follow` the next block fades from that tone to another.
    """

    def __init__(self, dynamics: str) -> None:
        self._filters = self._next = _filters(dynamics)
        self._mix_before: Frames = np.zeros((3, BLOCK), np.float32)
        self._sends: Spectra = np.zeros((self._filters.wet.shape[1], BLOCK + 1), np.complex64)  # newest first

    def follow(self, dynamics: str) -> None:
        """Cross-fade to the tone of these dynamics during the next block, and keep it afterwards."""
        self._next = _filters(dynamics)

    def process(self, mix: Frames) -> tuple[Frames, float]:
        """Filter a block of left, right and send [3, BLOCK] to audio [2, BLOCK] and its K-weighted power."""
        spectra: Spectra = scipy.fft.rfft(np.concatenate([self._mix_before, mix], axis=1))  # [3, BLOCK + 1]
        self._mix_before = mix
        self._sends = np.roll(self._sends, 1, axis=0)
        self._sends[0] = spectra[2]
        sound, weighted = self._filters.apply(spectra[:2], self._sends)
        if self._next is not self._filters:
            # The past is kept unfiltered, so both tones are known whole: what rings on fades with the rest.
            for heard, wanted in zip((sound, weighted), self._next.apply(spectra[:2], self._sends), strict=True):
                heard += _CROSSFADE * (wanted - heard)
            self._filters = self._next
        return sound, float(np.sum(weighted.astype(np.float64) ** 2)) / BLOCK


@dataclass(frozen=True, slots=True, eq=False)
class _Filters:
    """Spectra of the dry path [BLOCK + 1] and of the wet one [2, P, BLOCK + 1], plain and K-weighted."""

    dry: Spectra
    dry_k: Spectra
    wet: Spectra
    wet_k: Spectra

    def apply(self, stereo: Spectra, sends: Spectra) -> tuple[Frames, Frames]:
        """Sound [2, BLOCK], and the same K-weighted, of two blocks of the mix [2, BLOCK + 1] and of all sends."""
        sound = stereo * self.dry + np.einsum("pf,cpf->cf", sends, self.wet)
        weighted = stereo * self.dry_k + np.einsum("pf,cpf->cf", sends, self.wet_k)
        return scipy.fft.irfft(sound)[:, BLOCK:], scipy.fft.irfft(weighted)[:, BLOCK:]


@lru_cache(maxsize=len(_TILT_DB))
def _filters(dynamics: str) -> _Filters:
    dry, dry_k = (_partitions(h[None, :])[0, 0] for h in _tone(dynamics))
    return _Filters(dry, dry_k, *_reverb(dynamics))


def _tone(dynamics: str) -> tuple[Frames, Frames]:
    """Return impulse responses [BLOCK] of the dry path, without and with K-weighting."""
    response = high_pass(30.0, 0.7071, SAMPLE_RATE, _FFT) * high_shelf(
        _TILT_DB[dynamics], 2500.0, 0.6, SAMPLE_RATE, _FFT
    )
    plain = np.fft.irfft(response)[:BLOCK]
    weighted = np.fft.irfft(response * k_weighting(SAMPLE_RATE, _FFT))[:BLOCK]
    return plain.astype(np.float32), weighted.astype(np.float32)


def _reverb(dynamics: str) -> tuple[Spectra, Spectra]:
    """Return partitioned spectra [2, P, BLOCK + 1] of the wet path, without and with K-weighting."""
    impulse = _impulse_response()
    num_points = 1 << int(np.ceil(np.log2(impulse.shape[1] + 2 * BLOCK)))
    spectrum = np.fft.rfft(impulse, num_points)
    plain, weighted = (
        np.fft.irfft(spectrum * np.fft.rfft(tone, num_points), num_points)[:, : impulse.shape[1]]
        for tone in _tone(dynamics)
    )
    return _partitions(plain), _partitions(weighted)


def _partitions(impulse: npt.NDArray[np.floating]) -> Spectra:
    """Return spectra [C, P, BLOCK + 1] of consecutive partitions of an impulse response [C, N]."""
    channels, length = impulse.shape
    padded = np.pad(impulse, ((0, 0), (0, -length % BLOCK))).reshape(channels, -1, BLOCK)
    return scipy.fft.rfft(padded, _FFT).astype(np.complex64)


@lru_cache(maxsize=1)
def _impulse_response() -> npt.NDArray[np.float64]:
    """Synthesise a hall, [2, N], of unit energy per channel: early reflections, then noise whose highs decay faster."""
    length = round(_REVERB_S * SAMPLE_RATE)
    rng = np.random.Generator(np.random.PCG64(_ROOM_SEED))
    time_s = np.arange(length) / SAMPLE_RATE
    frequency = np.asarray(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), np.float64)
    tail = np.zeros((2, length))
    edges = [150.0, 500.0, 1700.0, 4500.0, 9000.0]
    for (_, decay_s), low, high in zip(_DECAY_60_DB_S, edges, edges[1:], strict=False):
        band = _band(frequency, low, high) / np.sqrt(np.maximum(frequency, low) / low)
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((2, length))) * band, length)
        tail += noise * 10 ** (-3 * time_s / decay_s)
    tail *= np.clip((time_s - _PREDELAY_S) / 0.03, 0, 1)
    tail /= np.sqrt(np.sum(tail**2, axis=1, keepdims=True))
    for channel in range(2):
        for delay_s, amplitude in _EARLY_ECHOES:
            tail[channel, round(delay_s * (1.0 + 0.11 * channel) * SAMPLE_RATE)] += amplitude
    tail *= np.cos(np.clip((time_s - _REVERB_S + 0.4) / 0.4, 0, 1) * np.pi / 2)
    return tail / np.sqrt(np.sum(tail**2, axis=1, keepdims=True))


def _band(frequency: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Return a band-pass from `low` to `high` with slopes of half an octave."""
    octave = np.log2(np.maximum(frequency, 1.0))
    return np.clip((octave - np.log2(low)) * 2 + 0.5, 0, 1) * np.clip((np.log2(high) - octave) * 2 + 0.5, 0, 1)
