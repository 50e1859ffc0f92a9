"""The music engines by name. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from attune_client.protocol.errors import InvalidOption
from attune_ensemble.music.engine import MusicEngine


def create_engine(name: str) -> MusicEngine:
    """A new engine of that name; raises `InvalidOption`, naming those there are, when there is none."""
    if name not in _ENGINES:
        raise InvalidOption(f"engine must be one of {', '.join(_ENGINES)}; got {name!r}")
    return _ENGINES[name]()


def _composer() -> MusicEngine:
    from attune_ensemble.music.composer.engine import ComposerEngine

    return ComposerEngine()


_ENGINES: dict[str, Callable[[], MusicEngine]] = {"composer": _composer}
