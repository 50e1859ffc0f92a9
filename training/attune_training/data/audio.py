"""Reading speech for training: 16 kHz mono, silence trimmed at both ends.

Audio is a file of its own, or encoded bytes inside another file (Arrow, Parquet).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from attune_training.config import SAMPLE_RATE
from attune_training.providers import is_cut_off

__all__ = [
    "AudioSource",
    "EmbeddedAudio",
    "audio_fault",
    "encoded_audio",
    "read_speech",
    "sound_bounds",
    "trim_silence",
]

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddedAudio:
    """An encoded audio file inside another file; `load` returns its bytes, read when called.

    `load` has to be picklable, so that worker processes can read. Instances of the same name compare equal.
    """

    name: str
    load: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


AudioSource: TypeAlias = Path | EmbeddedAudio


def encoded_audio(source: AudioSource) -> bytes:
    """Return the encoded bytes.

    Raises:
        ValueError: the file is missing, or it cannot be opened.
    """
    if isinstance(source, EmbeddedAudio):
        return source.load()
    if not source.is_file():
        raise ValueError(f"missing file {source}")
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error


def audio_fault(encoded: bytes) -> str:
    """Return why `encoded` is not a complete audio file; empty if it is.

    Only the header and the last sample are decoded, which detects truncated files at little cost.
    """
    try:
        with soundfile.SoundFile(BytesIO(encoded)) as file:
            if not file.frames:
                return "holds no audio"
            if is_cut_off(encoded):
                return "is cut short"
            file.seek(file.frames - 1)
            return "" if len(file.read(1)) else "is cut short"
    except soundfile.SoundFileError as error:
        # libsndfile names the Python object that holds the bytes, which means nothing to the user.
        return f"cannot be read as audio: {str(error).rpartition('>: ')[2]}"


def read_speech(source: AudioSource) -> Waveform:
    """Return the source's audio, [T] float32 at 16 kHz, channels averaged.

    Raises:
        ValueError: the source cannot be read as audio, or is empty.
    """
    file = BytesIO(source.load()) if isinstance(source, EmbeddedAudio) else source
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise ValueError(f"{source} cannot be read as audio: {error}") from error
    mono = samples.mean(axis=1)
    if not mono.size:
        raise ValueError(f"{source} holds no audio")
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def trim_silence(waveform: Waveform, floor_db: float = -40.0, margin_s: float = 0.1) -> Waveform:
    """Return [T] without the silence at both ends, as `sound_bounds` finds it."""
    start, end = sound_bounds(waveform, floor_db, margin_s)
    return waveform[start:end]


def sound_bounds(waveform: Waveform, floor_db: float = -40.0, margin_s: float = 0.1) -> tuple[int, int]:
    """Return the samples at which sound starts and ends in [T], with a margin.

    Silence is 20 ms frames below `floor_db` relative to the loudest frame.
    """
    frame = SAMPLE_RATE // 50
    count = len(waveform) // frame
    if count == 0:
        return 0, len(waveform)
    level = np.sqrt(np.square(waveform[: count * frame].reshape(count, frame)).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (floor_db / 20))
    if not loud.size:
        return 0, len(waveform)
    margin = int(margin_s * SAMPLE_RATE)
    return max(0, int(loud[0]) * frame - margin), min(len(waveform), (int(loud[-1]) + 1) * frame + margin)
