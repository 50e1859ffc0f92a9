"""K-weighting and gated loudness by ITU-R BS.1770-4, in the forms that the composer needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

OFFSET_DB = -0.691
"""The constant of BS.1770: loudness is this plus ten times the logarithm of the K-weighted power."""

LEVEL_HOP_S = 0.1
"""Grid of all level curves; four hops are one gating block of 400 ms."""

_GATE_HOPS = 4
_SILENCE_DB = -120.0

FloatArray = npt.NDArray[np.float64]


def biquad_response(b: tuple[float, ...], a: tuple[float, ...], num_points: int) -> npt.NDArray[np.complex128]:
    """Frequency response of b/a on the `num_points // 2 + 1` bins of a real FFT of `num_points`."""
    z = np.exp(-2j * np.pi * np.arange(num_points // 2 + 1) / num_points)
    return np.asarray(np.polyval(b[::-1], z) / np.polyval(a[::-1], z), np.complex128)


def high_pass(cutoff_hz: float, q: float, sample_rate: int, num_points: int) -> npt.NDArray[np.complex128]:
    """Response of a second-order high-pass (Audio EQ Cookbook)."""
    w = 2 * np.pi * cutoff_hz / sample_rate
    alpha, c = np.sin(w) / (2 * q), np.cos(w)
    return biquad_response(((1 + c) / 2, -(1 + c), (1 + c) / 2), (1 + alpha, -2 * c, 1 - alpha), num_points)


def high_shelf(
    gain_db: float, corner_hz: float, q: float, sample_rate: int, num_points: int
) -> npt.NDArray[np.complex128]:
    """Response of a second-order high shelf (Audio EQ Cookbook)."""
    amp = 10 ** (gain_db / 40)
    w = 2 * np.pi * corner_hz / sample_rate
    alpha, c = np.sin(w) / (2 * q), np.cos(w)
    root = 2 * np.sqrt(amp) * alpha
    b = (amp * ((amp + 1) + (amp - 1) * c + root), -2 * amp * ((amp - 1) + (amp + 1) * c))
    a = ((amp + 1) - (amp - 1) * c + root, 2 * ((amp - 1) - (amp + 1) * c))
    return biquad_response(
        (*b, amp * ((amp + 1) + (amp - 1) * c - root)), (*a, (amp + 1) - (amp - 1) * c - root), num_points
    )


def k_weighting(sample_rate: int, num_points: int) -> npt.NDArray[np.complex128]:
    """Response of the K-weighting filter (BS.1770-4, annex 1) at any sample rate."""
    shelf = high_shelf(3.99984385397, 1681.9744509555319, 0.7071752369554193, sample_rate, num_points)
    return shelf * high_pass(38.13547087613982, 0.5003270373253953, sample_rate, num_points)


def k_weighted(audio: npt.NDArray[np.float32], sample_rate: int) -> FloatArray:
    """K-weighted copy of `audio` [C, N], filtered as a whole."""
    num_points = 1 << int(np.ceil(np.log2(audio.shape[-1] + sample_rate)))
    spectrum = np.fft.rfft(audio, num_points) * k_weighting(sample_rate, num_points)
    return np.fft.irfft(spectrum, num_points)[..., : audio.shape[-1]]


def level_curve_db(audio: npt.NDArray[np.float32], sample_rate: int) -> FloatArray:
    """K-weighted power of `audio` [C, N], summed over channels, on the level grid, in dB (no BS.1770 offset)."""
    hop = round(LEVEL_HOP_S * sample_rate)
    power = np.sum(k_weighted(audio, sample_rate) ** 2, axis=0)
    padded = np.pad(power, (0, -len(power) % hop)).reshape(-1, hop).mean(axis=1)
    return np.maximum(10 * np.log10(padded + 1e-30), _SILENCE_DB)


def integrated_loudness(power: FloatArray) -> float:
    """Gated loudness in LUFS of a K-weighted power curve on the level grid; -120 for silence."""
    if len(power) < _GATE_HOPS:
        power = np.pad(power, (0, _GATE_HOPS - len(power)))
    sums = np.concatenate([[0.0], np.cumsum(power)])
    blocks = (sums[_GATE_HOPS:] - sums[:-_GATE_HOPS]) / _GATE_HOPS
    loud = blocks[blocks > _power(-70.0)]
    if not len(loud):
        return _SILENCE_DB
    gated = loud[loud > loud.mean() / 10]
    return float(OFFSET_DB + 10 * np.log10(gated.mean()))


def _power(lufs: float) -> float:
    return float(10 ** ((lufs - OFFSET_DB) / 10))
