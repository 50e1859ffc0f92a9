"""The music engines by name. An engine is a folder and a line of `ENGINES`; it is imported when it is asked for."""

from __future__ import annotations

import pkgutil

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption, ServerUnavailable
from attune_ensemble.music.engine import EngineFactory, EngineOptions, MusicEngine

__all__ = ["ENGINES", "EngineOptions", "available_engines", "create_engine", "default_engine", "engine_metrics"]

ENGINES = {
    "composer": "attune_ensemble.music.composer.factory:ComposerFactory",
    "musicgen": "attune_ensemble.music.musicgen.factory:MusicGenFactory",
}
"""Name and `EngineFactory` of each; where one was left out on purpose, the first that can play takes its place."""


def available_engines(options: EngineOptions) -> tuple[str, ...]:
    """Names of the engines that can play here."""
    return tuple(name for name in ENGINES if _factory(name, options).missing is None)


def default_engine(wanted: str, options: EngineOptions) -> str:
    """The engine that plays where a request names none: `wanted`, or another where that was left out on purpose.

    Raises `ServerUnavailable` where the engine wanted lacks something and nobody said that it should; `InvalidOption`
    where there is none of that name.
    """
    factory = _factory(wanted, options)
    if factory.missing is None:
        return wanted
    if factory.left_out and (others := available_engines(options)):
        return others[0]
    raise ServerUnavailable(factory.missing)


def engine_metrics(options: EngineOptions) -> dict[str, str]:
    """Name and meaning of every metric that the engines here may count."""
    factories = (_factory(name, options) for name in available_engines(options))
    return {name: meaning for factory in factories for name, meaning in factory.metrics.items()}


def create_engine(name: str, options: EngineOptions) -> MusicEngine:
    """A new engine of that name.

    Raises `InvalidOption`, naming those there are, when there is none; `ServerUnavailable` where its libraries are not
    installed.
    """
    available = available_engines(options)
    if name not in available:
        raise InvalidOption(_choice(name, available))
    return _factory(name, options).create()


def _factory(name: str, options: EngineOptions) -> EngineFactory:
    if name not in ENGINES:
        raise InvalidOption(_choice(name, tuple(ENGINES)))
    factory: EngineFactory = pkgutil.resolve_name(ENGINES[name])(options)
    return factory


def _choice(name: str, names: tuple[str, ...]) -> str:
    return f"engine must be one of {', '.join(names)}; got {quote(name)}"
