"""Atomic replacement of folders: a process killed at any moment leaves the old or the new one, complete."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

__all__ = ["recover_folder", "replace_folder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>


def replace_folder(fresh: Path, target: Path) -> None:
    """Replace the folder `target` by `fresh`, which is on the same file system.

    Where the system can exchange two names atomically, `target` exists at every moment. Elsewhere a process may be
    killed between two renames; `recover_folder` then restores the former folder.
    """
    if not target.exists():
        fresh.rename(target)
        return
    try:
        _exchange(fresh, target)
    except OSError:
        former = _former(target)
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
        fresh.rename(target)
        fresh = former
    shutil.rmtree(fresh)


def recover_folder(target: Path) -> None:
    """Restore the former `target` if a process was killed between the two renames."""
    if not target.exists() and _former(target).is_dir():
        _former(target).rename(target)


def _former(target: Path) -> Path:
    return target.with_name(f".{target.name}.former")


def _exchange(first: Path, second: Path) -> None:
    """Exchange two names atomically (Linux's renameat2).

    Raises:
        OSError: the system does not support it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    try:
        rename = library.renameat2
    except AttributeError as error:  # another system, or an old C library
        raise OSError("names cannot be exchanged here") from error
    names = (os.fsencode(first), os.fsencode(second))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))
