"""The interface of every music engine, and of what its folder brings to the place where it is served."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import check_duration, check_seed
from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.plan import MusicPlan

__all__ = ["Audio", "EngineFactory", "EngineOptions", "MusicEngine", "MusicRequest"]

Audio = npt.NDArray[np.float32]  # [N, C] frames in -1..1


@dataclass(frozen=True, slots=True)
class MusicRequest:
    """One piece of music to make: its specification and prompt as functions of time, length in seconds, and seed.

    `sampling` is for an engine that samples, None for that engine's own settings. `deadline_s` is how long the whole
    may take, from now to the last audio, for an engine that serves several at once; None: as long as it takes.

    Raises `InvalidOption` for a length outside 1..600 s or a negative seed.
    """

    plan: MusicPlan
    duration_s: float
    seed: int
    sampling: SamplingSettings | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        check_duration(self.duration_s)
        check_seed(self.seed)


class MusicEngine(Protocol):
    """Makes music from a request, a chunk at a time.

    It asks the request's plan what to play as the piece goes on, so that the music follows a plan that changes.
    """

    name: str
    sample_rate: int

    def metrics(self) -> Mapping[str, float]:
        """What the engine counts, by the names that its factory's `metrics` explain."""
        ...

    def generate(self, request: MusicRequest, chunk_s: float) -> Generator[Audio, None, None]:
        """Yield the music as [N, C] float32 chunks of about `chunk_s` seconds, `duration_s` in all.

        Closing it stops the work. An empty chunk means that there is nothing yet, and lets the caller look
        whether anybody still listens.
        """
        ...

    def close(self) -> None:
        """End its threads, and give back its memory and files; nothing is asked of it afterwards.

        It returns within half a minute, even where a thread does not end.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Where an engine runs: the parameters of the model that serves it, by name, its device and its version folder.

    Each engine's factory reads the parameters that are its own, and leaves the others alone.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    folder: Path | None = None


class EngineFactory(Protocol):
    """What the folder of an engine brings: its settings, read from `EngineOptions`, its metrics, and the engine.

    The registry names it, and calls it with the options. Importing it must cost nothing: whatever is heavy is imported
    when the engine is created.
    """

    @property
    def metrics(self) -> Mapping[str, str]:
        """Name and meaning of every metric that the engine counts; each name begins with the engine's."""
        ...

    @property
    def missing(self) -> str | None:
        """What the engine needs and does not find here, and how to bring it; None where it can play."""
        ...

    @property
    def left_out(self) -> bool:
        """Whether what is missing was left out on purpose, so that another engine plays in its place."""
        ...

    def create(self) -> MusicEngine:
        """A new engine. Raises `ServerUnavailable` where its libraries are not installed."""
        ...
