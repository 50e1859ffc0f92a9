"""Folders that last as long as the processes that use them, however these end.

A process that is killed leaves its folder behind. So a folder is locked while anybody uses it, which the kernel ends
with the last process that has it open, and whoever makes the next one clears away those that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Scratch", "clear_abandoned", "new_name"]

_MADE_JUST_NOW_S = 60.0
"""A folder so young may be about to be locked."""


class Scratch:
    """A new private folder among the temporary ones, called `name`; `path` is where it is.

    A child process that inherits `lock` holds the folder as well, and so do its own children.

    Raises:
        OSError: there is no temporary folder that can be written to.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.gettempdir()) / name
        self.path.mkdir(mode=0o700)
        self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder with all that is in it; the second time does nothing."""
        if self.lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lock)
            self.lock = -1


def new_name(prefix: str) -> str:
    """The prefix and 16 hexadecimal digits that nobody can foresee."""
    return prefix + secrets.token_hex(8)


def clear_abandoned(prefix: str) -> Iterator[str]:
    """Remove this user's folders of that prefix that nobody holds, and yield the name of each once it is gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process was faster, or is at work
            if _is_old_and_ours(path) and _clear(path):
                yield path.name


def _is_old_and_ours(path: Path) -> bool:
    status = path.lstat()
    return status.st_uid == os.getuid() and time.time() - status.st_mtime > _MADE_JUST_NOW_S


def _clear(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(lock)
    return True
