"""Folders that are replaced in one step, so that a kill at any moment leaves one of the two, whole."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

__all__ = ["recover_folder", "replace_folder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>


def replace_folder(fresh: Path, target: Path) -> None:
    """Put the folder ``fresh`` in the place of ``target``, of the same file system.

    Where the system can exchange two names, ``target`` is at every moment the one or the other. Elsewhere a kill may
    fall between two renames; :func:`recover_folder` then brings the former one back.
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
    """Bring back what was in the place of ``target`` if a kill fell between the two renames."""
    if not target.exists() and _former(target).is_dir():
        _former(target).rename(target)


def _former(target: Path) -> Path:
    return target.with_name(f".{target.name}.former")


def _exchange(first: Path, second: Path) -> None:
    """Exchange two names in one step (Linux's renameat2); OSError where that cannot be had."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        rename = library.renameat2
    except AttributeError as error:  # another system, or an old C library
        raise OSError("names cannot be exchanged here") from error
    names = (os.fsencode(first), os.fsencode(second))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))
