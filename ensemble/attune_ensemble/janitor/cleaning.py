"""Ends and removes what somebody has started and left.

    python -I -S cleaning.py MARK GRACE_S [FOLDER]      # its standard input is a pipe of the owner

It waits for the end of the pipe, which the kernel closes with its owner, however that ended. Then it ends every process
whose environment has MARK, `NAME=value`: with SIGTERM, and those that are still there after GRACE_S with SIGKILL; with
no time of grace at once. Last it removes FOLDER, and the shared memory whose names begin with the folder's.

It imports the standard library only and is started without site packages, so that it is small, starts at once, and has
little that could fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["GIVE_UP_S", "clear", "processes_with", "regions_of"]

GIVE_UP_S = 10.0
"""How long it may take until the last process is gone that was killed, in seconds."""

_SHM_DIR = Path("/dev/shm")
_POLL_S = 0.02
_LOOKS = 3
"""So many looks in vain: what was just being started has its mark only when its program runs."""


def main(mark: str, grace_s: float, folder: Path | None) -> None:
    """Wait until standard input ends, then clear away what is left."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    clear(mark, grace_s, folder)


def clear(mark: str, grace_s: float = 0.0, folder: Path | None = None) -> None:
    """End the processes with that mark; remove the folder, and the shared memory that is named after it."""
    if grace_s:
        _end(mark, signal.SIGTERM, grace_s)
    _end(mark, signal.SIGKILL, GIVE_UP_S)
    if folder is not None:
        for region in regions_of(folder.name):
            region.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _end(mark: str, number: signal.Signals, within_s: float) -> None:
    """Send that signal to each process with the mark, and wait until there is none or the time is over."""
    deadline_s = time.monotonic() + within_s
    told: set[int] = set()
    looks = 0
    while looks < _LOOKS and time.monotonic() < deadline_s:
        found = set(processes_with(mark))
        for process in found - told:
            _send(process, mark, number)
        if number != signal.SIGKILL:
            told = found  # a second one would tell them not to end in order
        looks = 0 if found else looks + 1
        time.sleep(_POLL_S)


def _send(process: int, mark: str, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(process)
        try:
            if _has(process, mark):  # the number is still that process's
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def processes_with(mark: str) -> Iterator[int]:
    """Process ids of this user's processes that have `mark` in their environment; a zombie has none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has(int(entry.name), mark):
            yield int(entry.name)


def _has(process: int, mark: str) -> bool:
    try:
        return os.fsencode(mark) in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def regions_of(name: str) -> Iterator[Path]:
    """The shared memory whose names begin with that name and a hyphen."""
    return _SHM_DIR.glob(f"{name}-*")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
