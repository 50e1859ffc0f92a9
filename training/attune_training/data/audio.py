"""Reading speech for training: 16 kHz mono, silence trimmed at both ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from attune_training.config import SAMPLE_RATE

__all__ = ["read_speech", "trim_silence"]

Waveform = npt.NDArray[np.float32]


def read_speech(path: Path) -> Waveform:
    """Return the file's audio, [T] float32 at 16 kHz, channels averaged.

    Raises:
        ValueError: the file cannot be read as audio, or is empty.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from error
    mono = samples.mean(axis=1)
    if not mono.size:
        raise ValueError(f"{path} holds no audio")
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def trim_silence(waveform: Waveform, floor_db: float = -40.0, margin_s: float = 0.1) -> Waveform:
    """Return [T] without the quiet at both ends: 20 ms frames below ``floor_db`` of the loudest, but for a margin."""
    frame = SAMPLE_RATE // 50
    count = len(waveform) // frame
    if count == 0:
        return waveform
    level = np.sqrt(np.square(waveform[: count * frame].reshape(count, frame)).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (floor_db / 20))
    if not loud.size:
        return waveform
    margin = int(margin_s * SAMPLE_RATE)
    return waveform[max(0, loud[0] * frame - margin) : (loud[-1] + 1) * frame + margin]
