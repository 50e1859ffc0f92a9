"""A lease: how a model that calls a streaming model tells it to stop.

Triton 24.10 does not pass a cancellation on to the models that a model calls. So the caller holds a lock on a small
file and sends the file's name along; the streaming model looks, before each chunk, whether the lock is still held. The
kernel drops the lock when the caller dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import Self

from attune_client.protocol.errors import InvalidOption

__all__ = ["Lease", "is_held"]

_TOKEN = re.compile(r"[0-9a-f]{32}")


class Lease:
    """Held while the context lasts; `token` names it."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex

    def __enter__(self) -> Self:
        _folder().mkdir(mode=0o700, exist_ok=True)
        self._file = (_folder() / self.token).open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *error: object) -> None:
        (_folder() / self.token).unlink(missing_ok=True)
        self._file.close()


def is_held(token: str) -> bool:
    """Whether the holder of that lease is alive and has not given it up; InvalidOption if it is no token of ours."""
    if not _TOKEN.fullmatch(token):
        raise InvalidOption("the lease is not a token of 32 hexadecimal digits")
    path = _folder() / token
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    path.unlink(missing_ok=True)  # its holder died without giving it up
    return False


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"attune-leases-{os.getuid()}"
