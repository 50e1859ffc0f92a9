"""What lies between a mouth and a recording: a room, a microphone, a telephone line.

Dimensions: T samples, at 16 kHz. Every function returns [T] float32 and leaves its input unchanged.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal
import soundfile
import soxr

from attune_training.config import SAMPLE_RATE

__all__ = ["EQUALISER_BANDS", "TELEPHONE_CODECS", "TelephoneCodec", "equalise", "reverberate", "through_telephone"]

Waveform = npt.NDArray[np.float32]

TelephoneCodec = Literal["ULAW", "ALAW", "GSM610"]
TELEPHONE_CODECS: tuple[TelephoneCodec, ...] = get_args(TelephoneCodec)
"""G.711 in both laws, and GSM 06.10 full rate."""

_TELEPHONE_RATE = 8_000
_TELEPHONE_BAND = (300.0, 3_400.0)  # Hz; ITU-T G.712
_EARLIEST_REFLECTION = int(0.002 * SAMPLE_RATE)
_EQUALISER_HZ = (60.0, 125.0, 250.0, 500.0, 1_000.0, 2_000.0, 4_000.0, 8_000.0)

EQUALISER_BANDS = len(_EQUALISER_HZ)
"""How many gains `equalise` takes."""


def reverberate(waveform: Waveform, decay_s: float, direct_db: float, random: np.random.Generator) -> Waveform:
    """Return the waveform as heard in a room, as long as before and with its mean power.

    The impulse response is the direct sound, then noise that begins 2 ms later and falls by 60 dB in `decay_s`
    (Polack's model of late reverberation); `direct_db` is the direct sound's energy over that of the rest.

    Raises:
        ValueError: the decay is not above zero.
    """
    if not decay_s > 0:
        raise ValueError(f"a decay must be above zero seconds, not {decay_s}")
    length = max(1, int(decay_s * SAMPLE_RATE))
    envelope = 10.0 ** (-3.0 * np.arange(length) / length)
    tail = random.standard_normal(length) * envelope
    tail *= np.sqrt(10.0 ** (-direct_db / 10.0) / np.sum(tail**2))
    response = np.concatenate([[1.0], np.zeros(_EARLIEST_REFLECTION), tail])
    heard = scipy.signal.fftconvolve(waveform.astype(np.float64), response)[: len(waveform)]
    return _with_power_of(waveform, heard)


def equalise(waveform: Waveform, gains_db: Sequence[float] | npt.NDArray[np.float64]) -> Waveform:
    """Return the waveform through a microphone whose response has these gains at 60, 125, ... 8,000 Hz, in dB.

    Between these the gain is linear over the logarithm of frequency.

    Raises:
        ValueError: there are not eight gains.
    """
    if len(gains_db) != len(_EQUALISER_HZ):
        raise ValueError(f"expected {len(_EQUALISER_HZ)} gains, at {_EQUALISER_HZ} Hz, not {len(gains_db)}")
    size = scipy.fft.next_fast_len(len(waveform), real=True)
    hertz = np.maximum(scipy.fft.rfftfreq(size, 1.0 / SAMPLE_RATE), 1.0)
    gain_db = np.interp(np.log2(hertz), np.log2(_EQUALISER_HZ), np.asarray(gains_db, float))
    spectrum = scipy.fft.rfft(waveform, size) * (10.0 ** (gain_db / 20.0)).astype(np.float32)
    return scipy.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32)


def through_telephone(waveform: Waveform, codec: TelephoneCodec) -> Waveform:
    """Return the waveform after a telephone line: 300 to 3,400 Hz, 8 kHz, coded and decoded; its mean power is kept."""
    narrow = soxr.resample(waveform, SAMPLE_RATE, _TELEPHONE_RATE, quality="MQ")
    band = scipy.signal.butter(4, _TELEPHONE_BAND, "bandpass", fs=_TELEPHONE_RATE, output="sos")
    narrow = scipy.signal.sosfilt(band, narrow)
    peak = np.abs(narrow).max(initial=0.0)
    if not peak:
        return waveform.copy()
    file = io.BytesIO()
    soundfile.write(file, narrow / peak * 0.9, _TELEPHONE_RATE, format="WAV", subtype=codec)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float64")
    heard = soxr.resample(decoded, _TELEPHONE_RATE, SAMPLE_RATE, quality="MQ")
    return _with_power_of(waveform, _of_length(heard, len(waveform)))


def _of_length(values: npt.NDArray[np.floating], length: int) -> npt.NDArray[np.floating]:
    """Cut or pad with zeros: codecs work in blocks."""
    return np.pad(values[:length], (0, max(0, length - len(values))))


def _with_power_of(waveform: Waveform, heard: npt.NDArray[np.floating]) -> Waveform:
    """Return `heard` with the mean power of `waveform`, so that level stays a matter of its own."""
    wanted, found = np.mean(np.square(waveform, dtype=np.float64)), np.mean(np.square(heard, dtype=np.float64))
    return (heard * np.sqrt(wanted / found) if found else heard).astype(np.float32)
