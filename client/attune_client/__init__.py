"""Client side of Attune: the public protocol, gRPC clients, and the `attune` command.

The clients are imported on first use, so that importing `attune_client.protocol` stays light for
the processes inside the server. Type checkers see plain imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attune_client.aio import AsyncAttuneClient, AsyncMusicStream
    from attune_client.client import AttuneClient, MusicStream
    from attune_client.local import LocalClient
    from attune_client.protocol.errors import AttuneError
    from attune_client.protocol.music_spec import MusicSpec
    from attune_client.results import VAD, CrisisWords, MusicPrompt, Segment, SpeechEmotion, TherapySession

_MODULES = {
    "AsyncAttuneClient": "attune_client.aio",
    "AsyncMusicStream": "attune_client.aio",
    "AttuneClient": "attune_client.client",
    "AttuneError": "attune_client.protocol.errors",
    "CrisisWords": "attune_client.results",
    "LocalClient": "attune_client.local",
    "MusicPrompt": "attune_client.results",
    "MusicSpec": "attune_client.protocol.music_spec",
    "MusicStream": "attune_client.client",
    "Segment": "attune_client.results",
    "SpeechEmotion": "attune_client.results",
    "TherapySession": "attune_client.results",
    "VAD": "attune_client.results",
}

__all__ = [
    "VAD",
    "AsyncAttuneClient",
    "AsyncMusicStream",
    "AttuneClient",
    "AttuneError",
    "CrisisWords",
    "LocalClient",
    "MusicPrompt",
    "MusicSpec",
    "MusicStream",
    "Segment",
    "SpeechEmotion",
    "TherapySession",
]


if not TYPE_CHECKING:  # a type checker would accept any attribute otherwise

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
