"""A lease: how whoever calls a model tells it how far it has read, and to stop.

Triton 24.10 does not pass a cancellation on to the models that a model calls, a call over gRPC (`own_server`) is better
not cancelled, and a model that streams is never told whether anybody reads. So the caller holds an unnamed file in
memory and sends its token along; the model that works for it looks, again and again, whether the file is still there,
and how many responses its holder has written down as taken. The file is in no folder, so nobody can foresee, remove or
occupy it; only processes of the same user see it (in /proc); and the kernel takes it away when the caller dies, however
it dies.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import threading
from pathlib import Path
from typing import Self

from attune_client.protocol.errors import InvalidOption

__all__ = ["Lease", "LeaseReader", "is_held"]

_TOKEN = re.compile(r"([1-9][0-9]{0,9})-([0-9]{1,9})-([0-9a-f]{32})")
_COUNT = struct.Struct("<Q")


class Lease:
    """Held from the beginning until `end`, or as long as the context lasts; `token` tells others where to look.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        secret = secrets.token_hex(16)
        self._lock = threading.Lock()  # who writes to a file that was closed may write into another one
        self._file: int | None = os.memfd_create(_name(secret))
        self.token = f"{os.getpid()}-{self._file}-{secret}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def taken(self, count: int) -> None:
        """Say how many responses have been taken in all; after the end it does nothing.

        Who streams for this lease stays at most a window ahead of that. Whoever will ever say so says 0 at the
        beginning: a lease that says nothing holds no stream back.
        """
        with self._lock:
            if self._file is not None:
                os.pwrite(self._file, _COUNT.pack(count), 0)

    def end(self) -> None:
        """Give the lease up; the second time does nothing."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)


class LeaseReader:
    """The side of those who work for a lease: what its holder says, and whether it still holds it.

    Raises `InvalidOption` if the token is none of ours.
    """

    def __init__(self, token: str) -> None:
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise InvalidOption("the lease is not a token of ours")
        process, file, secret = parts.groups()
        self._path = Path(f"/proc/{process}/fd/{file}")
        self._target = f"/memfd:{_name(secret)} (deleted)"
        self._file: int | None = None

    def is_held(self) -> bool:
        """Whether the holder lives and has not given the lease up.

        Its own descriptor is looked at: the file itself lasts as long as a reader has it open.
        """
        return self._is_ours(self._path)

    def taken(self) -> int | None:
        """How many responses the holder has taken in all; None if it never said, or holds the lease no more.

        The file stays open until `close`, so every further look is one system call.
        """
        if self._file is None:
            self._file = self._open()
        written = b"" if self._file is None else os.pread(self._file, _COUNT.size, 0)
        return _COUNT.unpack(written)[0] if len(written) == _COUNT.size else None

    def close(self) -> None:
        """Close the file; the second time does nothing."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _open(self) -> int | None:
        """The lease's file; None if it is gone."""
        if not self.is_held():  # another file by that number may be one that must not even be opened
            return None
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if self._is_ours(Path(f"/proc/self/fd/{file}")):
            return file
        os.close(file)
        return None

    def _is_ours(self, path: Path) -> bool:
        try:
            # The number may be that of another process or file by now; the name is not.
            return str(path.readlink()) == self._target
        except OSError:
            return False


def is_held(token: str) -> bool:
    """Whether the holder of that lease lives and has not given it up; InvalidOption if it is no token of ours."""
    return LeaseReader(token).is_held()


def _name(secret: str) -> str:
    return f"attune-lease-{secret}"
