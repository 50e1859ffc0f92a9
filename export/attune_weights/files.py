"""Digests of files, and atomic replacement of files and folders.

They are in this package because training, export and the server all depend on it.
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
    """Return the sha256 of a file, in hexadecimal; read in pieces, since a checkpoint may exceed the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there replaces `path` at the end of the block.

    If the block raises, `path` is unchanged, and the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        TypeError: `value` is not serialisable as JSON.
    """
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def replace_folder(fresh: Path, target: Path) -> None:
    """Replace the folder ``target`` by ``fresh``, which is on the same file system.

    Where the system can exchange two names atomically, ``target`` exists at every moment. Elsewhere a process may be
    killed between two renames; :func:`recover_folder` then restores the former folder.
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
    """Restore the former ``target`` if a process was killed between the two renames."""
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
