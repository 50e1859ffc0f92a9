"""Decoding with PyAV in a process of its own, which may run out of time or memory, or crash, for one request alone.

PyAV bundles codecs under the GPL, and decoders of many old formats: it is never loaded into a serving process.
The process gets the file on standard input and gives samples, or the error, on standard output.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import UnreadableAudio, from_wire

__all__ = ["MAX_CPU_S", "MAX_MEMORY", "REFUSED", "decode_in_process"]

MAX_CPU_S = 30
"""CPU seconds that the process may take; ten minutes of AAC take about 3."""

MAX_MEMORY = 2**30
"""Bytes of address space that the process may take, beside twice the file's own size."""

REFUSED = 3
"""Exit status of a process that wrote an error, in the form that crosses the wire, in place of samples."""

_MAX_WALL_S = 60.0
_LOG_CHARACTERS = 2000
_WORKER = "attune_ensemble.av_worker"


def decode_in_process(encoded: bytes) -> npt.NDArray[np.float32]:
    """Decode one recording with PyAV to [T] float32 at 16 kHz; raises the `InvalidAudio` that fits."""
    # -I: neither the current folder nor PYTHONPATH is searched for modules. One thread: each reserves memory.
    command = [sys.executable, "-I", "-m", _WORKER]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=encoded, capture_output=True, env=environment, timeout=_MAX_WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnreadableAudio(f"decoding the recording took longer than {_MAX_WALL_S:g} s") from None
    if done.returncode == 0:
        return np.frombuffer(done.stdout, np.float32)
    if done.returncode == REFUSED:
        raise from_wire(done.stdout.decode())
    if done.stderr:
        logging.getLogger(__name__).error("%s: %s", _WORKER, done.stderr.decode(errors="replace")[-_LOG_CHARACTERS:])
    raise UnreadableAudio(f"not a readable recording (the decoder {_ending(done.returncode)})")


def _ending(status: int) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"took more than {MAX_CPU_S} s"
    return f"crashed: {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
