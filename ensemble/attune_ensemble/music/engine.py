"""The interface of every music engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import check_duration, check_seed
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.sampling import SamplingSettings

Audio = npt.NDArray[np.float32]  # [N, C] frames in -1..1


@dataclass(frozen=True, slots=True)
class MusicRequest:
    """One piece of music to make: the prompt in words, its specification, length in seconds, and seed.

    `sampling` is for an engine that samples, None for that engine's own settings.

    Raises `InvalidOption` for a length outside 1..600 s or a negative seed.
    """

    prompt: str
    spec: MusicSpec
    duration_s: float
    seed: int
    sampling: SamplingSettings | None = None

    def __post_init__(self) -> None:
        check_duration(self.duration_s)
        check_seed(self.seed)


class MusicEngine(Protocol):
    """Makes music from a request, a chunk at a time."""

    name: str
    sample_rate: int

    def metrics(self) -> Mapping[str, float]:
        """What the engine counts, by the names that `engine_metrics` explains."""
        ...

    def generate(self, request: MusicRequest, chunk_s: float) -> Iterator[Audio]:
        """Yield the music as [N, C] float32 chunks of about `chunk_s` seconds, `duration_s` in all.

        Closing the iterator stops the work. An empty chunk means that there is nothing yet, and lets the caller look
        whether anybody still listens.
        """
        ...
