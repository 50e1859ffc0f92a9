"""Client side of Attune: the public protocol, gRPC clients, and the `attune` command.

The clients are imported when they are first used, so that `attune_client.protocol` stays light for
the processes inside the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "AsyncAttuneClient": "attune_client.aio",
    "AsyncMusicStream": "attune_client.aio",
    "AttuneClient": "attune_client.client",
    "AttuneError": "attune_client.protocol.errors",
    "MusicStream": "attune_client.client",
}

__all__ = ["AsyncAttuneClient", "AsyncMusicStream", "AttuneClient", "AttuneError", "MusicStream"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
