"""A lease: how a model that calls another one tells it to stop.

Triton 24.10 does not pass a cancellation on to the models that a model calls, and a call over gRPC (`own_server`) is
better not cancelled. So the caller holds an unnamed file in memory and sends its token along; the model that works for
it looks, again and again, whether the file is still there. The file is in no folder, so nobody can foresee, remove or
occupy it; only processes of the same user see it (in /proc); and the kernel takes it away when the caller dies, however
it dies.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Self

from attune_client.protocol.errors import InvalidOption

__all__ = ["Lease", "is_held"]

_TOKEN = re.compile(r"([1-9][0-9]{0,9})-([0-9]{1,9})-([0-9a-f]{32})")


class Lease:
    """Held from the beginning until `end`, or as long as the context lasts; `token` tells others where to look."""

    def __init__(self) -> None:
        secret = secrets.token_hex(16)
        self._file: int | None = os.memfd_create(_name(secret))
        self.token = f"{os.getpid()}-{self._file}-{secret}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Give the lease up; the second time does nothing."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def is_held(token: str) -> bool:
    """Whether the holder of that lease lives and has not given it up; InvalidOption if it is no token of ours."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        raise InvalidOption("the lease is not a token of ours")
    process, file, secret = parts.groups()
    try:
        # The number may be that of another process or file by now; the name is not.
        return str(Path(f"/proc/{process}/fd/{file}").readlink()) == f"/memfd:{_name(secret)} (deleted)"
    except OSError:
        return False


def _name(secret: str) -> str:
    return f"attune-lease-{secret}"
