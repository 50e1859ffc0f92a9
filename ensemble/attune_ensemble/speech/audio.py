"""Decoding and validation of recordings: any supported format to 16 kHz mono float32.

Invalid recordings are rejected here, with the reason, before any model runs. libsndfile decodes; formats that it does
not support (M4A, 3GP, AMR, WebM and other containers) are decoded by PyAV in a process of its own
(`attune_ensemble.speech.av_process`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

from attune_client.protocol.bounds import MAX_SPEECH_S, MAX_SPEECH_SAMPLES, SPEECH_RATES_HZ
from attune_client.protocol.errors import (
    AudioTooLong,
    EmptyAudio,
    NonFiniteAudio,
    SilentAudio,
    TruncatedAudio,
    UnreadableAudio,
)
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_ensemble.speech.av_process import decode_in_process
from attune_ensemble.speech.containers import check_complete, fill_in_length

__all__ = ["SILENCE_DBFS", "Decoder", "MonoStream", "Waveform", "decode_speech", "level_dbfs"]

_FORMATS = (
    *("WAV", "WAVEX", "RF64", "W64", "FLAC", "MP3", "OGG", "AIFF", "AU", "CAF"),
    *("NIST", "VOC", "SVX", "IRCAM", "AVR", "PVF", "PAF", "WVE", "SDS"),
)
"""Container formats that are decoded with libsndfile, by its names."""

SILENCE_DBFS = -65.0
"""A recording whose loudest 50 ms lies below this level counts as silent."""

_BLOCK_SAMPLES = 2**17  # of all channels together, so that memory depends neither on rate nor on channels
_LEVEL_FRAME = SPEECH_SAMPLE_RATE // 20
_MAX_PEAK = 2.0**31  # range of unscaled 32-bit integers written as floats; sums of larger values overflow float32
_UNKNOWN_FRAMES = 2**62  # libsndfile reports an unknown length as the largest integer

Waveform = npt.NDArray[np.float32]  # [T] mono in -1..1


class Decoder(StrEnum):
    """Decoders of recordings: libsndfile alone, or PyAV as well for formats that libsndfile does not support."""

    SOUNDFILE = "soundfile"
    WITH_PYAV = "soundfile+pyav"


def decode_speech(
    encoded: bytes, decoder: Decoder = Decoder.WITH_PYAV, check: Callable[[], None] = lambda: None
) -> Waveform:
    """Decode one recording of any rate (4 to 384 kHz) and channel count to [T] float32 at 16 kHz, in -1..1.

    Channels are averaged; float samples beyond full scale are scaled down to it. `check` is called periodically; what
    it raises ends the decoding.

    Raises:
        InvalidAudio: one of `EmptyAudio`, `UnreadableAudio`, `TruncatedAudio`, `AudioTooLong`, `NonFiniteAudio` and
            `SilentAudio`.
    """
    if not encoded:
        raise EmptyAudio("the file is empty; send a recording")
    check_complete(encoded)
    waveform = _to_full_scale(_decode(encoded, decoder, check))
    _check_level(waveform)
    return waveform


def _decode(encoded: bytes, decoder: Decoder, check: Callable[[], None]) -> Waveform:
    try:
        file = _Stream(_Bytes(fill_in_length(encoded)))
    except sf.LibsndfileError as error:
        return _decode_elsewhere(encoded, decoder, check, error.error_string.rstrip("."), error)
    with file:
        if file.format not in _FORMATS:
            return _decode_elsewhere(encoded, decoder, check, f"{file.format} is not supported")
        _check_header(file)
        return _read_mono_16k(file, check)


def _decode_elsewhere(
    encoded: bytes,
    decoder: Decoder,
    check: Callable[[], None],
    reason: str,
    cause: sf.LibsndfileError | None = None,
) -> Waveform:
    if decoder is Decoder.WITH_PYAV:
        return decode_in_process(encoded, check)
    raise UnreadableAudio(
        f"not a recording that this server reads ({reason}); send WAV, FLAC, MP3, OGG, AIFF, AU or CAF"
    ) from cause


class _Bytes(io.BytesIO):
    """A file in memory whose position stays where it is when a broken header sends it elsewhere than into a file.

    soundfile would print a traceback for each such seek, which libsndfile copes with.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Return the position, a new one where there is one."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Stream(sf.SoundFile):
    """A file that is read sequentially.

    soundfile seeks after each read of a seekable file, which fails for a FLAC without its length in the header.
    """

    def seekable(self) -> bool:
        """Return False."""
        return False


def _check_header(file: sf.SoundFile) -> None:
    """Reject a recording that is too long by its header, before decoding."""
    check_rate(file.samplerate)
    if not _length_is_known(file):
        return
    duration_s = file.frames / file.samplerate
    if duration_s > MAX_SPEECH_S:
        raise AudioTooLong(f"the recording lasts {duration_s:.0f} s; at most {MAX_SPEECH_S:.0f} s are accepted")
    if file.frames * file.channels > MAX_SPEECH_SAMPLES:
        raise _too_many_samples()


def check_rate(rate_hz: int) -> None:
    """Raise `UnreadableAudio` for a sample rate outside `SPEECH_RATES_HZ`."""
    lowest, highest = SPEECH_RATES_HZ
    if not lowest <= rate_hz <= highest:
        raise UnreadableAudio(f"the sample rate is {rate_hz} Hz; {lowest} to {highest} Hz are accepted")


def _too_many_samples() -> AudioTooLong:
    return AudioTooLong(
        f"the recording holds more than the {MAX_SPEECH_SAMPLES / 1e6:.0f} million samples, of all channels "
        "together, that are accepted; send a lower sample rate or fewer channels"
    )


def _read_mono_16k(file: sf.SoundFile, check: Callable[[], None]) -> Waveform:
    stream = MonoStream()
    for block in _blocks(file):
        check()
        stream.add(block, file.samplerate)
    waveform = stream.finish()
    if _length_is_exact(file) and stream.frames < file.frames:
        raise TruncatedAudio(
            f"the file ends after {stream.frames} of the {file.frames} samples that its header announces"
        )
    return waveform


def _blocks(file: sf.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    """Yield blocks [N, C]; a decoding error after the start of a file means that it is truncated."""
    frames = 0
    while True:
        try:
            block = file.read(max(_BLOCK_SAMPLES // file.channels, 1), dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise TruncatedAudio(f"the recording cannot be decoded past {frames / file.samplerate:.1f} s") from error
        if len(block) == 0:
            return
        frames += len(block)
        yield block


def _length_is_known(file: sf.SoundFile) -> bool:
    return 0 < file.frames < _UNKNOWN_FRAMES


def _length_is_exact(file: sf.SoundFile) -> bool:
    """Return whether the header's length is exact; an MP3's is an estimate."""
    return _length_is_known(file) and file.format != "MP3"


class MonoStream:
    """Streaming conversion of blocks of any rate and channel count to one waveform [T] of 16 kHz mono.

    Memory is proportional to the result. `frames` counts the input samples per channel.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._samples = 0
        self._before_s = 0.0
        self._frames_of_rate = 0
        self._rate = 0
        self._resampler: soxr.ResampleStream | None = None
        self._parts: list[Waveform] = []

    def add(self, block: npt.NDArray[np.float32], rate_hz: int) -> None:
        """Add a block [N, C]; raises an `InvalidAudio` if its samples are invalid or the recording is too long."""
        check_rate(rate_hz)
        if rate_hz != self._rate:
            self._start(rate_hz)
        self._count(block)
        _check_samples(block)
        mono = block.mean(axis=1, dtype=np.float32)
        assert self._resampler is not None
        self._parts.append(self._resampler.resample_chunk(mono))

    def finish(self) -> Waveform:
        """Return the waveform [T]; raises `EmptyAudio` without any samples."""
        if self.frames == 0:
            raise EmptyAudio("the file holds no samples")
        self._flush()
        return np.concatenate(self._parts)

    def _count(self, block: npt.NDArray[np.float32]) -> None:
        self.frames += len(block)
        self._samples += block.size
        if self._samples > MAX_SPEECH_SAMPLES:
            raise _too_many_samples()
        # Frames are counted, because seconds that are added up are more than their sum by rounding.
        self._frames_of_rate += len(block)
        if self._duration_s() > MAX_SPEECH_S:  # some headers understate the length, or have none
            raise AudioTooLong(f"the recording lasts longer than the {MAX_SPEECH_S:.0f} s that are accepted")

    def _start(self, rate_hz: int) -> None:
        """Start a resampler for a new rate: an AAC stream may double its rate after the first frame."""
        self._flush()
        self._before_s = self._duration_s()
        self._rate, self._frames_of_rate = rate_hz, 0
        self._resampler = soxr.ResampleStream(rate_hz, SPEECH_SAMPLE_RATE, 1, dtype="float32")

    def _duration_s(self) -> float:
        return self._before_s + (self._frames_of_rate / self._rate if self._rate else 0.0)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._parts.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _check_samples(block: npt.NDArray[np.float32]) -> None:
    """Check the samples before they are summed: sums of finite numbers may overflow."""
    peak = float(np.abs(block).max(initial=0.0))
    if not np.isfinite(peak):
        raise NonFiniteAudio("the recording holds NaN or infinite samples; every sample must be a finite number")
    if peak > _MAX_PEAK:
        raise NonFiniteAudio(f"the samples reach {peak:.1e}, where full scale is 1; no recording is that loud")


def _to_full_scale(waveform: Waveform) -> Waveform:
    """Return the waveform in -1..1: float files may exceed full scale.

    Raises `SilentAudio` if a few samples exceed it so far that the others would fall below `SILENCE_DBFS`.
    """
    level = np.abs(waveform)
    peak = float(level.max(initial=0.0))
    if peak <= 1:
        return waveform
    if np.quantile(level, 0.99) < peak * 10 ** (SILENCE_DBFS / 20):
        raise SilentAudio(f"a few samples reach {peak:.1e}, where full scale is 1; beside them nothing can be heard")
    return waveform / np.float32(peak)


def _check_level(waveform: Waveform) -> None:
    if level_dbfs(waveform) < SILENCE_DBFS:
        raise SilentAudio(f"the recording is silent (below {SILENCE_DBFS:g} dBFS); check the microphone")


def level_dbfs(waveform: Waveform) -> float:
    """Return the level of the loudest 50 ms in dBFS, after removal of the DC offset; -inf for digital silence."""
    centred = waveform - waveform.mean()
    frames = np.pad(centred, (0, -len(centred) % _LEVEL_FRAME)).reshape(-1, _LEVEL_FRAME)
    power = float(np.square(frames, dtype=np.float64).mean(axis=1).max())
    return 10 * np.log10(power) if power > 0 else float("-inf")
