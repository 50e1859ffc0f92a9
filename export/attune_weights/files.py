"""Digests of files, and files and folders that are written so that a kill at any moment leaves them whole.

They stand in this package because it is the one ground that training, export and the server share.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["recover_folder", "replace_folder", "sha256_of", "whole_file", "write_json"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal; it is read in pieces, for a checkpoint may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to beside ``path``; what was written there takes its place when the block ends.

    Where the block raises, ``path`` is as it was, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON that people can read, and leave the file as it was where that fails.

    Raises:
        TypeError: ``value`` holds what JSON cannot.
    """
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


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
