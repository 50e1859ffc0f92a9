"""What MusicGen brings to the place where it is served: its settings, its metrics, and the engine. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.foreign_text import without_internals
from attune_ensemble.music.engine import EngineOptions, MusicEngine
from attune_ensemble.music.musicgen.checkpoint import CONFIG_FILE, FOLDER, NONE
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.statistics import METRICS
from attune_ensemble.music.musicgen.threads import keep_workers_awake

__all__ = ["MusicGenFactory", "MusicGenSettings"]


@dataclass(frozen=True, slots=True)
class MusicGenSettings:
    """The parameters of the model that are MusicGen's.

    `weights` is the folder of the checkpoint, None without a version folder to find it in. `numerics` are those of the
    decoder, empty for the device's usual ones; `slots` and `queue` are requests at a time, and requests that may wait.
    """

    weights: Path | None
    numerics: str
    slots: int
    queue: int

    @classmethod
    def of(cls, options: EngineOptions) -> MusicGenSettings:
        """Read the parameters `weights` (a name in the version folder), `numerics`, `slots` and `queue`."""
        given, usual = options.settings, EngineSettings()
        return cls(
            weights=options.folder / given.get("weights", FOLDER) if options.folder else None,
            numerics=given.get("numerics", ""),
            slots=int(given.get("slots", usual.slots)),
            queue=int(given.get("queue", usual.queue)),
        )


class MusicGenFactory:
    """Makes engines on the checkpoint that was exported; implements `EngineFactory`."""

    metrics: Mapping[str, str] = METRICS

    def __init__(self, options: EngineOptions) -> None:
        self.settings = MusicGenSettings.of(options)
        self._device = options.device

    @property
    def missing(self) -> str | None:
        """Says how to export a checkpoint where there is none."""
        if self._has(CONFIG_FILE):
            return None
        return (
            "this profile plays with MusicGen, and no checkpoint has been exported for it: run `attune export` with "
            f"this --profile, and --musicgen {NONE} if the composer is to play"
        )

    @property
    def left_out(self) -> bool:
        """Whether `attune export --musicgen none` has said that there shall be none."""
        return self._has(NONE)

    def create(self) -> MusicEngine:
        """A running engine. Raises `ServerUnavailable` where its checkpoint or its libraries are missing."""
        settings = self.settings
        if settings.weights is None or self.missing is not None:
            raise ServerUnavailable(self.missing)
        keep_workers_awake()
        try:
            from attune_ensemble.music.musicgen.music_engine import load_engine
        except ImportError as error:
            lacking = without_internals(str(error))
            raise ServerUnavailable(
                f"MusicGen needs more than is installed ({lacking}): the server's environment lacks the extra "
                "'musicgen'"
            ) from error
        return load_engine(settings.weights, self._device, settings.numerics, settings.slots, settings.queue)

    def _has(self, file: str) -> bool:
        return self.settings.weights is not None and (self.settings.weights / file).is_file()
