"""Where music goes: a file in the format of its name, or a pipe; whole at every moment that it may have to end.

Files are written through libsndfile into streams of our own, because libsndfile hides why a disk refused, and cannot
write to what has no way back: a pipe gets the bytes in order, and what would be corrected afterwards stays open, as
every program leaves it that streams (a WAV of unknown length, a FLAC without a count).
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
"""What can be written, by the extension of its files."""

_BLOCK_FRAMES = 4_096  # libsndfile crashes on one long OGG write
_UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Destination:
    """A file, or standard output, and the format that it gets."""

    path: Path
    format_name: str

    @property
    def name(self) -> str:
        """For people."""
        return "standard output" if self.is_stdout else click.format_filename(self.path)

    @property
    def is_stdout(self) -> bool:
        """Whether the music goes to standard output."""
        return self.path == STDOUT

    @property
    def is_regular(self) -> bool:
        """Whether it is, or will be, a file that can be read back; a pipe or a device is not."""
        return not self.is_stdout and (not self.path.exists() or self.path.is_file())

    def open(self, *, overwrite: bool) -> FileIO:
        """The raw stream; a file that exists is opened only if it may be overwritten.

        Raises OSError, FileExistsError among them.
        """
        if self.is_stdout:
            sys.stdout.flush()
            return FileIO(os.dup(sys.stdout.fileno()), "w")
        return FileIO(self.path, "x" if self.is_regular and not overwrite else "w")


class AudioOutput:
    """Writes music as it comes; `seconds` counts what was taken.

    Args:
        destination: where, and in which format.
        rate: in Hz.
        channels: of the music.
        overwrite: whether a file that exists may be written over.

    Raises:
        OSError: as every method does, where the disk, the pipe or the permissions end; `filename` is set.
    """

    def __init__(self, destination: Destination, rate: int, channels: int, *, overwrite: bool = False) -> None:
        self._rate = rate
        self._frames = 0
        self._name = destination.name
        self._raised: Exception | None = None
        raw = destination.open(overwrite=overwrite)
        self._stream = _Stream(raw, can_go_back=destination.is_regular)
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
        """Seconds of music that were taken."""
        return self._frames / self._rate

    def write(self, audio: Audio) -> None:
        """Write [N, C] samples."""
        for start in range(0, len(audio), _BLOCK_FRAMES):
            block = audio[start : start + _BLOCK_FRAMES]
            self._guarded(functools.partial(self._file.write, block))
            self._frames += len(block)

    def close(self) -> None:
        """Complete the file, its header too; an error that was raised before is not raised again."""
        try:
            self._guarded(self._file.close)
        finally:
            self._guarded(self._stream.close)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do something that writes; the error that the stream met counts, not what libsndfile made of it."""
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
    """A binary stream for libsndfile, through whose C code no exception passes: the first one is kept in `error`.

    Without `can_go_back` it is a pipe or a device, and corrections of what has gone out are dropped.
    """

    def __init__(self, raw: FileIO, *, can_go_back: bool) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._can_go_back = can_go_back
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
        """How many bytes were taken: fewer than were given where the disk is full."""
        at_end = self._position >= self._end
        if at_end and self.error is not None:
            return 0
        done = self.write_all(data) if at_end or self._can_go_back else len(data)
        self._position += done
        self._end = max(self._end, self._position)
        return done

    def write_all(self, data: bytes) -> int:
        """A raw write may stop after some of the bytes; the next one then says why."""
        rest = memoryview(data)
        try:
            if self._can_go_back:
                self._raw.seek(self._position)
            while rest:
                written = self._raw.write(rest)
                if written is None:  # a pipe that does not block
                    select.select([], [self._raw], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.error = self.error or error
        return len(data) - len(rest)

    def close(self) -> None:
        self._raw.close()


def _endless_wav_header(rate: int, channels: int) -> bytes:
    """44 bytes that announce 16-bit samples up to the end of the stream."""
    frame_bytes = 2 * channels
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * frame_bytes, frame_bytes, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN_SIZE, b"WAVE") + fmt + struct.pack("<4sI", b"data", _UNKNOWN_SIZE)


def readable_s(path: Path) -> float:
    """Seconds of music that a file really holds: it is read to its end, or to where it breaks off."""
    frames, rate = 0, 1
    with contextlib.suppress(OSError, sf.LibsndfileError), sf.SoundFile(path) as file:
        rate = file.samplerate
        while len(block := file.read(_BLOCK_FRAMES, dtype="int16", always_2d=True)):
            frames += len(block)
    return frames / rate


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Find out whether a file can be written, and leave none behind; the folders to it are made.

    Raises:
        OSError: it cannot.
        click.ClickException: it exists, and may not be written over.
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
    elif not os.access(path, os.W_OK):  # a device, or a pipe that waits for its reader
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
