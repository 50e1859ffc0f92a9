"""Decoding with PyAV in a process of its own, so that a crash or an exceeded limit affects one request alone.

PyAV bundles codecs under the GPL, and decoders of many old formats: it is never loaded into a serving process.
The process reads the file from standard input and writes samples, or the error, to standard output.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import UnreadableAudio, from_wire

__all__ = ["MAX_CPU_S", "MAX_MEMORY", "REFUSED", "decode_in_process"]

MAX_CPU_S = 30
"""CPU time limit of the process in seconds; ten minutes of AAC take about 3."""

MAX_MEMORY = 2**30
"""Limit of the process's address space in bytes, in addition to twice the file's size."""

REFUSED = 3
"""Exit status of a process that wrote an error, in the protocol's format, in place of samples."""

_MAX_WALL_S = 60.0
_POLL_S = 0.2
_LOG_CHARACTERS = 2000
_WORKER = "attune_ensemble.speech.av_worker"


def decode_in_process(encoded: bytes, check: Callable[[], None] = lambda: None) -> npt.NDArray[np.float32]:
    """Decode one recording with PyAV to [T] float32 at 16 kHz.

    `check` is called periodically; what it raises ends the process.

    Raises:
        InvalidAudio: the recording cannot be used; the subclass says why.
    """
    # -P: the current folder is not searched for modules. PYTHONPATH is, since a container may have Attune there.
    command = [sys.executable, "-P", "-s", "-m", _WORKER]
    # One thread, since each reserves address space.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with (
        _as_file(encoded) as file,
        subprocess.Popen(command, stdin=file, stdout=pipe, stderr=pipe, env=environment) as process,
    ):
        try:
            output, complaints = _communicate(process, check)
        finally:
            process.kill()  # no effect if it has ended
    if process.returncode == 0:
        return np.frombuffer(output, np.float32)
    if process.returncode == REFUSED:
        raise from_wire(output.decode())
    if complaints:
        logging.getLogger(__name__).error("%s: %s", _WORKER, complaints.decode(errors="replace")[-_LOG_CHARACTERS:])
    raise UnreadableAudio(f"not a readable recording (the decoder {_ending(process.returncode)})")


def _as_file(encoded: bytes) -> BinaryIO:
    """Return an open file in memory that holds the recording.

    Not a pipe: `communicate` never writes what was left over when its timeout came (CPython 3.11 to 3.13).
    """
    file = os.fdopen(os.memfd_create("recording", os.MFD_CLOEXEC), "r+b")
    file.write(encoded)
    file.seek(0)
    return file


def _communicate(process: subprocess.Popen[bytes], check: Callable[[], None]) -> tuple[bytes, bytes]:
    """Return standard output and error of the process; raises `UnreadableAudio` after `_MAX_WALL_S`."""
    deadline_s = time.monotonic() + _MAX_WALL_S
    while True:
        try:
            return process.communicate(timeout=_POLL_S)  # it continues where it was
        except subprocess.TimeoutExpired:
            check()
            if time.monotonic() > deadline_s:
                raise UnreadableAudio(f"decoding the recording took longer than {_MAX_WALL_S:g} s") from None


def _ending(status: int) -> str:
    if status == -signal.SIGXCPU:
        return f"took more than {MAX_CPU_S} s"
    if status == -signal.SIGKILL:
        return f"took more than {MAX_CPU_S} s, or too much memory"
    return f"crashed: {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
