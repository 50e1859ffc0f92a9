"""The music engines by name, each imported only when it is asked for: MusicGen brings torch, the composer does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption, ServerUnavailable
from attune_client.protocol.foreign_text import without_internals
from attune_ensemble.music.engine import MusicEngine
from attune_ensemble.music.musicgen.statistics import METRICS
from attune_ensemble.music.musicgen.threads import keep_workers_awake

__all__ = ["EngineOptions", "available_engines", "create_engine", "default_engine", "engine_metrics"]

COMPOSER, MUSICGEN = "composer", "musicgen"

_CHECKPOINT_FILE = "config.json"  # beside it lie the weights
_NO_CHECKPOINT_FILE = "none"  # what `attune export --musicgen none` leaves in the checkpoint's place


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine may need to know of the place where it runs.

    `musicgen` is the folder of MusicGen's checkpoint, or None where there is none; `without_musicgen` tells that it was
    left out on purpose. `numerics` are those of its decoder,
    empty for the device's usual ones; `slots` and `queue` are requests at a time, and requests that may wait.
    """

    device: str = "cpu"
    musicgen: Path | None = None
    numerics: str = ""
    slots: int = 8
    queue: int = 64
    without_musicgen: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, str], device: str, folder: Path) -> EngineOptions:
        """Read a model's settings; `folder` is its version folder, and the setting `weights` a name in it."""
        checkpoint = folder / settings.get("weights", MUSICGEN)
        return cls(
            device=device,
            musicgen=checkpoint if (checkpoint / _CHECKPOINT_FILE).is_file() else None,
            without_musicgen=(checkpoint / _NO_CHECKPOINT_FILE).is_file(),
            numerics=settings.get("numerics", ""),
            slots=int(settings.get("slots", "8")),
            queue=int(settings.get("queue", "64")),
        )


def available_engines(options: EngineOptions) -> tuple[str, ...]:
    """Names of the engines that can play here."""
    return tuple(name for name in _ENGINES if name != MUSICGEN or options.musicgen is not None)


def default_engine(wanted: str, options: EngineOptions) -> str:
    """The engine that plays where a request names none: `wanted`, or the composer where MusicGen was left out.

    Raises `ServerUnavailable` where MusicGen is wanted, is not there, and nobody said that it should not be.
    """
    if wanted != MUSICGEN or options.musicgen is not None:
        return wanted
    if options.without_musicgen:
        return COMPOSER
    raise ServerUnavailable(
        "this profile plays with MusicGen, and no checkpoint has been exported for it: run `attune export` with this "
        "--profile, and --musicgen none if the composer is to play"
    )


def engine_metrics(options: EngineOptions) -> dict[str, str]:
    """Name and meaning of every metric that the engines here may count."""
    return METRICS if MUSICGEN in available_engines(options) else {}


def create_engine(name: str, options: EngineOptions) -> MusicEngine:
    """A new engine of that name.

    Raises `InvalidOption`, naming those there are, when there is none; `ServerUnavailable` where its libraries are not
    installed.
    """
    available = available_engines(options)
    if name not in available:
        raise InvalidOption(f"engine must be one of {', '.join(available)}; got {quote(name)}")
    return _ENGINES[name](options)


def _composer(options: EngineOptions) -> MusicEngine:
    from attune_ensemble.music.composer.engine import ComposerEngine

    return ComposerEngine()


def _musicgen(options: EngineOptions) -> MusicEngine:
    keep_workers_awake()
    try:
        from attune_ensemble.music.musicgen.music_engine import load_engine
    except ImportError as error:
        lacking = without_internals(str(error))
        raise ServerUnavailable(
            f"MusicGen needs more than is installed ({lacking}): the server's environment lacks the extra 'musicgen'"
        ) from error

    assert options.musicgen is not None
    return load_engine(options.musicgen, options.device, options.numerics, options.slots, options.queue)


_ENGINES: dict[str, Callable[[EngineOptions], MusicEngine]] = {COMPOSER: _composer, MUSICGEN: _musicgen}
