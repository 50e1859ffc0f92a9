"""How the server gives memory back, and its models do not have to.

Triton keeps the bytes of the responses to a request until its end, in pieces of any size, after which glibc's heap has
gaps and gives nothing back: 150 MB after ten minutes of music in one piece. Where every piece of 128 KiB or more is
mapped by itself, all of it is given back (`SERVER_ENVIRONMENT`). The models inherit that environment and would pay
dearly, with half as much time again for Whisper and twice as much for the composer: they begin by taking the limit back
(`restore`).
"""

from __future__ import annotations

import ctypes

__all__ = ["POOL_SIZE", "SERVER_ENVIRONMENT", "give_back", "restore"]

SERVER_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""What the server is started with (mallopt(3))."""

POOL_SIZE = 0
"""Messages of gRPC that Triton keeps for later ones."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USUAL_BYTES = 32 * 2**20
"""What glibc's own, moving limit comes to in a process that handles large arrays."""


def give_back() -> None:
    """Give the pages that this process has freed back to the system: many threads that make music at once, each in a
    heap of its own, leave 10 MB each behind. Takes milliseconds.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def restore() -> None:
    """Let this process, a model's, allocate as usual."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not every C library has it
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_BYTES)
