"""Decoding a person's recording into the one form that the models take: 16 kHz mono float32.

Whatever is wrong with a recording is found here and named, before any model sees it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

from attune_client.protocol.errors import (
    AudioTooLong,
    EmptyAudio,
    NonFiniteAudio,
    SilentAudio,
    TruncatedAudio,
    UnreadableAudio,
)
from attune_client.protocol.models import MAX_SPEECH_S, SPEECH_SAMPLE_RATE

FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "MP3", "OGG", "AIFF")
"""Container formats that are accepted, by libsndfile's names."""

SILENCE_DBFS = -65.0
"""A recording whose loudest 50 ms lies below this level counts as silent."""

_BLOCK_S = 10
_LEVEL_FRAME = SPEECH_SAMPLE_RATE // 20
_OGG_END_OF_STREAM = 0x04
_WAV_SIZE_UNKNOWN = (0, 0xFFFFFFFF)  # what programs write that stream to a pipe

Waveform = npt.NDArray[np.float32]  # [T] mono in -1..1


def decode_speech(encoded: bytes) -> Waveform:
    """Decode one WAV, FLAC, MP3 or OGG file of any rate and channel count to [T] float32 at 16 kHz.

    Channels are averaged. Raises the `InvalidAudio` that fits: `EmptyAudio`, `UnreadableAudio`,
    `TruncatedAudio`, `AudioTooLong`, `NonFiniteAudio` or `SilentAudio`.
    """
    if not encoded:
        raise EmptyAudio("the file is empty; send a WAV, FLAC, MP3 or OGG recording")
    _check_complete(encoded)
    try:
        with sf.SoundFile(io.BytesIO(encoded)) as file:
            _check_header(file)
            waveform = _read_mono_16k(file)
    except sf.LibsndfileError as error:
        raise UnreadableAudio(
            f"not a readable recording ({error.error_string.rstrip('.')}); send WAV, FLAC, MP3 or OGG"
        ) from error
    _check_level(waveform)
    return waveform


def _check_header(file: sf.SoundFile) -> None:
    if file.format not in FORMATS:
        raise UnreadableAudio(f"{file.format} is not supported; send WAV, FLAC, MP3 or OGG")
    if file.frames == 0:
        raise EmptyAudio("the file holds no samples")
    duration_s = file.frames / file.samplerate
    if duration_s > MAX_SPEECH_S:
        raise AudioTooLong(f"the recording lasts {duration_s:.0f} s; at most {MAX_SPEECH_S:.0f} s are accepted")


def _read_mono_16k(file: sf.SoundFile) -> Waveform:
    """Read block by block, so that memory follows the 16 kHz result and not the file's rate and channels."""
    stream = soxr.ResampleStream(file.samplerate, SPEECH_SAMPLE_RATE, 1, dtype="float32")
    parts: list[Waveform] = []
    frames = 0
    for block in _blocks(file):
        mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise NonFiniteAudio("the recording holds NaN or infinite samples; every sample must be a finite number")
        frames += len(mono)
        if frames > MAX_SPEECH_S * file.samplerate:  # some headers understate the length
            raise AudioTooLong(f"the recording lasts longer than the {MAX_SPEECH_S:.0f} s that are accepted")
        parts.append(stream.resample_chunk(mono))
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    if frames == 0:
        raise EmptyAudio("the file holds no samples")
    if _length_is_exact(file) and frames < file.frames:
        raise TruncatedAudio(f"the file ends after {frames} of the {file.frames} samples that its header announces")
    return np.concatenate(parts)


def _blocks(file: sf.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of [N, C]; a decoder that gives up in the middle of a file found it broken off."""
    frames = 0
    while True:
        try:
            block = file.read(_BLOCK_S * file.samplerate, dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise TruncatedAudio(f"the recording cannot be decoded past {frames / file.samplerate:.1f} s") from error
        if len(block) == 0:
            return
        frames += len(block)
        yield block


def _length_is_exact(file: sf.SoundFile) -> bool:
    """Whether the header counts samples; an MP3's length is an estimate."""
    return file.format != "MP3"


def _check_complete(encoded: bytes) -> None:
    """Find files that were cut off, which libsndfile reads without complaint."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WAVE":
        announced = int.from_bytes(encoded[4:8], "little")
        if announced not in _WAV_SIZE_UNKNOWN and announced + 8 > len(encoded) + 1:
            raise TruncatedAudio(f"the file has {len(encoded)} of the {announced + 8} bytes that its header announces")
    elif encoded[:4] == b"OggS":
        last_page = encoded.rfind(b"OggS")
        flags = encoded[last_page + 5 : last_page + 6]
        if not flags or not flags[0] & _OGG_END_OF_STREAM:
            raise TruncatedAudio("the OGG stream breaks off before its last page")


def _check_level(waveform: Waveform) -> None:
    if level_dbfs(waveform) < SILENCE_DBFS:
        raise SilentAudio(f"the recording is silent (below {SILENCE_DBFS:g} dBFS); check the microphone")


def level_dbfs(waveform: Waveform) -> float:
    """Level of the loudest 50 ms in dB below full scale, a constant offset left out; -inf for digital silence."""
    centred = waveform - waveform.mean()
    frames = np.pad(centred, (0, -len(centred) % _LEVEL_FRAME)).reshape(-1, _LEVEL_FRAME)
    power = float(np.square(frames, dtype=np.float64).mean(axis=1).max())
    return 10 * np.log10(power) if power > 0 else float("-inf")
