"""Ends and removes what a server leaves when whoever started it is gone, however that ended.

    python -I -S janitor.py FOLDER MARK      # a child of the server's owner; its standard input is a pipe of the owner

It waits for the end of the pipe, which the kernel closes with its owner. Then it kills every process whose environment
has MARK, `NAME=value` (the server, its models and what those have started), and removes the server's shared memory,
whose names begin with that of the server's private folder, and the folder.

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

__all__ = ["clear", "processes_with", "regions_of"]

_SHM_DIR = Path("/dev/shm")
_GIVE_UP_S = 10.0
_POLL_S = 0.02


def main(folder: Path, mark: str) -> None:
    """Wait until standard input ends, then clear away what is left."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    clear(folder, mark)


def clear(folder: Path, mark: str) -> None:
    """End the processes with that mark; remove the folder, and the shared memory that is named after it."""
    deadline_s = time.monotonic() + _GIVE_UP_S
    while _kill(mark) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    for region in regions_of(folder.name):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(mark: str) -> int:
    """Kill the processes with that mark; returns how many there were."""
    found = list(processes_with(mark))
    for process in found:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(process)
            try:
                if _has(process, mark):  # the number is still that process's
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
    return len(found)


def processes_with(mark: str) -> Iterator[int]:
    """Process ids of this user's processes that have `mark` in their environment; a zombie has none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has(int(entry.name), mark):
            yield int(entry.name)


def _has(process: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def regions_of(name: str) -> Iterator[Path]:
    """The shared memory of the server of that name."""
    return _SHM_DIR.glob(f"{name}-*")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
