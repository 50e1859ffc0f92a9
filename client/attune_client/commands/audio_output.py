"""Audio output to a file, in the format of its extension, or to a pipe; complete whenever writing is interrupted.

libsndfile writes into custom streams, because by itself it hides the reason of a failed write, and cannot write to
unseekable files: a pipe gets the bytes in order, and header fields that would be corrected afterwards stay unknown, as
in other streamed files (a WAV of unknown length, a FLAC without a count of samples).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import numpy.typing as npt
import soundfile as sf

__all__ = ["FORMATS", "STDOUT", "AudioFormat", "AudioOutput", "Destination", "check_writable", "readable_s"]

STDOUT = Path("-")

T = TypeVar("T")
Audio = npt.NDArray[np.float32]  # [N, C] in -1..1


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """A format that libsndfile writes, by its names."""

    container: str
    subtype: str


FORMATS = {
    "wav": AudioFormat("WAV", "PCM_16"),
    "flac": AudioFormat("FLAC", "PCM_16"),
    "ogg": AudioFormat("OGG", "VORBIS"),
    "mp3": AudioFormat("MP3", "MPEG_LAYER_III"),
}
"""Output formats by file extension."""

_BLOCK_FRAMES = 4_096  # libsndfile crashes on a single long OGG write
_UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Destination:
    """A file or standard output, and its format."""

    path: Path
    format_name: str

    @property
    def name(self) -> str:
        """Name for messages."""
        return "standard output" if self.is_stdout else click.format_filename(self.path)

    @property
    def is_stdout(self) -> bool:
        """Whether the output is standard output."""
        return self.path == STDOUT

    @property
    def is_regular(self) -> bool:
        """Whether it is, or will be, a file that can be read back; a pipe or a device is not."""
        return not self.is_stdout and (not self.path.exists() or self.path.is_file())

    def open(self, *, overwrite: bool) -> FileIO:
        """Open the raw stream; an existing file is opened only if it may be overwritten.

        Raises:
            OSError: it cannot be opened; FileExistsError if it exists.
        """
        if self.is_stdout:
            sys.stdout.flush()
            return FileIO(os.dup(sys.stdout.fileno()), "w")
        return FileIO(self.path, "x" if self.is_regular and not overwrite else "w")


class AudioOutput:
    """Streaming writer of music; `seconds` counts what was written.

    Args:
        destination: the output and its format.
        rate: sample rate in Hz.
        channels: number of channels.
        overwrite: whether an existing file may be overwritten.

    Raises:
        OSError: as every method does, for a full disk, a closed pipe or missing permissions; `filename` is set.
    """

    def __init__(self, destination: Destination, rate: int, channels: int, *, overwrite: bool = False) -> None:
        self._rate = rate
        self._frames = 0
        self._name = destination.name
        self._raised: Exception | None = None
        raw = destination.open(overwrite=overwrite)
        self._stream = _Stream(raw, seekable=destination.is_regular)
        form = FORMATS[destination.format_name]
        container = form.container
        if container == "WAV" and not destination.is_regular:
            self._stream.write_all(_endless_wav_header(rate, channels))
            container = "RAW"
        self._file = self._guarded(
            lambda: sf.SoundFile(self._stream, "w", rate, channels, form.subtype, format=container)
        )

    @property
    def seconds(self) -> float:
        """Seconds of music written."""
        return self._frames / self._rate

    def write(self, audio: Audio) -> None:
        """Write [N, C] samples."""
        for start in range(0, len(audio), _BLOCK_FRAMES):
            block = audio[start : start + _BLOCK_FRAMES]
            self._guarded(functools.partial(self._file.write, block))
            self._frames += len(block)

    def close(self) -> None:
        """Complete the file and its header; an error that was raised before is not raised again."""
        try:
            self._guarded(self._file.close)
        finally:
            self._guarded(self._stream.close)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Run an operation that writes; raises the stream's own error instead of libsndfile's."""
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        failure = self._stream.error or failure
        if failure is not None and failure is not self._raised:
            self._raised = failure
            raise OSError(failure.errno, failure.strerror, self._name) if isinstance(failure, OSError) else failure
        return result  # type: ignore[return-value]


class _Stream:
    """A binary stream for libsndfile, through whose C code no exception propagates: the first is kept in `error`.

    Without `seekable` it is a pipe or a device, and corrections of bytes already written are dropped.
    """

    def __init__(self, raw: FileIO, *, seekable: bool) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._seekable = seekable
        self._position = 0
        self._end = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        return b""

    def write(self, data: bytes) -> int:
        """Write, and return the number of bytes written: fewer than given if the disk is full."""
        at_end = self._position >= self._end
        if at_end and self.error is not None:
            return 0
        done = self.write_all(data) if at_end or self._seekable else len(data)
        self._position += done
        self._end = max(self._end, self._position)
        return done

    def write_all(self, data: bytes) -> int:
        """Write all bytes: a raw write may be partial, and the next one then raises the reason."""
        rest = memoryview(data)
        try:
            if self._seekable:
                self._raw.seek(self._position)
            while rest:
                written = self._raw.write(rest)
                if written is None:  # a non-blocking pipe
                    select.select([], [self._raw], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.error = self.error or error
        return len(data) - len(rest)

    def close(self) -> None:
        self._raw.close()


def _endless_wav_header(rate: int, channels: int) -> bytes:
    """Return a 44-byte header of 16-bit samples up to the end of the stream."""
    frame_bytes = 2 * channels
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * frame_bytes, frame_bytes, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN_SIZE, b"WAVE") + fmt + struct.pack("<4sI", b"data", _UNKNOWN_SIZE)


def readable_s(path: Path) -> float:
    """Return the seconds of music in a file, by decoding it to its end, or to where it is truncated."""
    frames, rate = 0, 1
    with contextlib.suppress(OSError, sf.LibsndfileError), sf.SoundFile(path) as file:
        rate = file.samplerate
        while len(block := file.read(_BLOCK_FRAMES, dtype="int16", always_2d=True)):
            frames += len(block)
    return frames / rate


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check that a file can be written, without creating it; its parent folders are created.

    Raises:
        OSError: it cannot be written.
        click.ClickException: it exists, and may not be overwritten.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    if path.is_file() and not overwrite:
        raise click.ClickException(f"{click.format_filename(path)} exists; --force writes over it")
    if path.is_file():
        path.open("r+b").close()
    elif not path.exists():
        path.open("xb").close()
        path.unlink()
    elif not os.access(path, os.W_OK):  # a device, or a pipe whose opening would block until it has a reader
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
