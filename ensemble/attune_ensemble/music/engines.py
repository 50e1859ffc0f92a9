"""The music engines by name, each imported only when it is asked for: MusicGen brings torch, the composer does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_client.protocol.errors import InvalidOption, ServerUnavailable
from attune_ensemble.music.engine import MusicEngine
from attune_ensemble.musicgen.statistics import METRICS
from attune_ensemble.musicgen.threads import keep_workers_awake

__all__ = ["EngineOptions", "available_engines", "create_engine", "engine_metrics"]

MUSICGEN_DIR = "musicgen"
"""Where `attune export` puts MusicGen's checkpoint, in the version folder of `music_generator`."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine may need to know of the place where it runs.

    `musicgen` is the folder of MusicGen's checkpoint, or None where there is none. `numerics` are those of its decoder,
    empty for the device's usual ones; `slots` and `queue` are requests at a time, and requests that may wait.
    """

    device: str = "cpu"
    musicgen: Path | None = None
    numerics: str = ""
    slots: int = 8
    queue: int = 64

    @classmethod
    def of(cls, settings: Mapping[str, str], device: str, folder: Path) -> EngineOptions:
        """Read a model's settings; `folder` is its version folder."""
        checkpoint = folder / MUSICGEN_DIR
        return cls(
            device=device,
            musicgen=checkpoint if checkpoint.is_dir() else None,
            numerics=settings.get("numerics", ""),
            slots=int(settings.get("slots", "8")),
            queue=int(settings.get("queue", "64")),
        )


def available_engines(options: EngineOptions) -> tuple[str, ...]:
    """Names of the engines that can play here."""
    return tuple(name for name in _ENGINES if name != MUSICGEN_DIR or options.musicgen is not None)


def engine_metrics(options: EngineOptions) -> dict[str, str]:
    """Name and meaning of every metric that the engines here may count."""
    return METRICS if MUSICGEN_DIR in available_engines(options) else {}


def create_engine(name: str, options: EngineOptions) -> MusicEngine:
    """A new engine of that name.

    Raises `InvalidOption`, naming those there are, when there is none; `ServerUnavailable` where its libraries are not
    installed.
    """
    available = available_engines(options)
    if name not in available:
        raise InvalidOption(f"engine must be one of {', '.join(available)}; got {name!r}")
    return _ENGINES[name](options)


def _composer(options: EngineOptions) -> MusicEngine:
    from attune_ensemble.music.composer.engine import ComposerEngine

    return ComposerEngine()


def _musicgen(options: EngineOptions) -> MusicEngine:
    keep_workers_awake()
    try:
        from attune_ensemble.musicgen.music_engine import load_engine
    except ImportError as error:
        raise ServerUnavailable(
            f"MusicGen needs more than is installed ({error}): the server's environment lacks the extra 'musicgen'"
        ) from error

    assert options.musicgen is not None
    return load_engine(options.musicgen, options.device, options.numerics, options.slots, options.queue)


_ENGINES: dict[str, Callable[[EngineOptions], MusicEngine]] = {"composer": _composer, "musicgen": _musicgen}
