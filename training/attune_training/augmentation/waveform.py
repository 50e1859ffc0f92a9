"""Waveform augmentation: speed, noise and gain (paper, section III-B), and rooms, microphones and telephone lines.

Dimensions: T samples, at 16 kHz. Every function returns float32 and leaves its input unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.fft
import soxr

from attune_training.augmentation.channel import (
    EQUALISER_BANDS,
    TELEPHONE_CODECS,
    equalise,
    reverberate,
    through_telephone,
)
from attune_training.config import SAMPLE_RATE

__all__ = ["WaveformAugmentation", "add_noise", "change_gain", "change_speed"]

Waveform = npt.NDArray[np.float32]
Range = tuple[float, float]

# Below this many samples a spectrum has too few bins to be shaped.
_SHORTEST_NOISE = 1024


def add_noise(waveform: Waveform, snr_db: float, random: np.random.Generator, slope: float = 0.0) -> Waveform:
    """Return [T] with additive noise at `snr_db`, relative to the waveform's mean power.

    The noise's power falls with frequency as 1 / f^slope: 0 is white, 1 pink, 2 brown. Silence is returned unchanged,
    as its signal-to-noise ratio is undefined.
    """
    power = _power(waveform)
    if power == 0.0:
        return waveform.copy()
    noise = _noise(len(waveform), slope, random)
    scale = np.sqrt(power / _power(noise) * 10.0 ** (-snr_db / 10.0))
    return (waveform + scale * noise).astype(np.float32)


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """Return [T / factor]: the waveform played `factor` times as fast, which changes pitch and tempo together.

    This is the speed perturbation of Ko et al. (Interspeech 2015), by resampling.

    Raises:
        ValueError: the factor is not above zero.
    """
    if not factor > 0:
        raise ValueError(f"a speed factor must be above zero, not {factor}")
    # Medium quality preserves the speech band in half the time of high quality.
    resampled = soxr.resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
    return resampled.astype(np.float32, copy=False) if len(resampled) else waveform.copy()


def change_gain(waveform: Waveform, gain_db: float) -> Waveform:
    """Return [T] with a gain of `gain_db`."""
    return (waveform * 10.0 ** (gain_db / 20.0)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class WaveformAugmentation:
    """Probability of each augmentation and the range of its parameter; a probability of zero turns it off.

    Speed is mild on purpose. Factor 1.1 is 12 log2(1.1) = 1.65 semitones higher and 10 % quicker, and both are cues of
    arousal that listeners use: the label of a clip does not change with its speed, so a wide range would teach the
    model to ignore them. Measured on 48 RAVDESS clips of actors 21-24, whose predicted arousal spreads with an sd of
    .77: the first `embedded` model's arousal moved by -.12 on average at factor 0.9 and by +.15 at 1.1. Gain is off
    by default for the same reason: loudness is a cue of arousal.

    Raises:
        ValueError: a probability is outside 0..1, a range is not in order, or a speed is not above zero.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a misspelt name in a recipe is refused

    noise_probability: float = 0.5
    snr_db: Range = (10.0, 30.0)
    noise_slope: Range = (0.0, 2.0)
    speed_probability: float = 0.5
    speed: Range = (0.9, 1.1)
    gain_probability: float = 0.0
    gain_db: Range = (-6.0, 6.0)
    room_probability: float = 0.0
    room_decay_s: Range = (0.15, 0.8)
    room_direct_db: Range = (0.0, 15.0)
    microphone_probability: float = 0.0
    microphone_db: Range = (-8.0, 8.0)
    telephone_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self) if item.name.endswith("_probability")):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        for name in (item.name for item in fields(self) if not item.name.endswith("_probability")):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must be a range from low to high, not {low} to {high}")
        for name in ("speed", "room_decay_s"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above zero, not {getattr(self, name)[0]}")

    def apply(self, waveform: Waveform, random: np.random.Generator) -> Waveform:
        """Return the waveform [T], augmented at random, in the order in which sound travels.

        That is: speed, room, gain, noise, microphone, telephone line.
        The result is never clipped. Where its peak would pass both 1 and the input's own peak, the whole is scaled
        down to the greater of these, which keeps the ratio of speech to noise.
        """
        changed = waveform
        if random.random() < self.speed_probability:
            changed = change_speed(changed, random.uniform(*self.speed))
        if random.random() < self.room_probability:
            decay_s, direct_db = random.uniform(*self.room_decay_s), random.uniform(*self.room_direct_db)
            changed = reverberate(changed, decay_s, direct_db, random)
        if random.random() < self.gain_probability:
            changed = change_gain(changed, random.uniform(*self.gain_db))
        if random.random() < self.noise_probability:
            snr_db, slope = random.uniform(*self.snr_db), random.uniform(*self.noise_slope)
            changed = add_noise(changed, snr_db, random, slope)
        if random.random() < self.microphone_probability:
            changed = equalise(changed, random.uniform(*self.microphone_db, EQUALISER_BANDS))
        if random.random() < self.telephone_probability:
            changed = through_telephone(changed, TELEPHONE_CODECS[int(random.integers(len(TELEPHONE_CODECS)))])
        return _limited(changed, max(1.0, _peak(waveform)))


def _power(waveform: npt.NDArray[np.floating]) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0


def _peak(waveform: Waveform) -> float:
    return float(np.abs(waveform).max(initial=0.0))


def _limited(waveform: Waveform, highest: float) -> Waveform:
    peak = _peak(waveform)
    return waveform if peak <= highest else (waveform * (highest / peak)).astype(np.float32)


def _noise(length: int, slope: float, random: np.random.Generator) -> Waveform:
    """Return [length] of Gaussian noise whose power falls as 1 / f^slope."""
    # A Fourier transform is slow where its length is a large prime.
    drawn = scipy.fft.next_fast_len(max(_SHORTEST_NOISE, length), real=True)
    white = random.standard_normal(drawn, dtype=np.float32)
    if slope == 0.0:
        return white[:length]
    spectrum = scipy.fft.rfft(white)
    spectrum[0] = 0.0
    spectrum[1:] *= np.arange(1, len(spectrum), dtype=np.float32) ** np.float32(-slope / 2.0)
    return scipy.fft.irfft(spectrum, drawn)[:length]
