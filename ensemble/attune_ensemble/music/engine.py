"""The interface of every music engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import InvalidOption, ServerError
from attune_client.protocol.models import MAX_MUSIC_S, MIN_MUSIC_S, MUSIC_LENGTH_TOLERANCE_S
from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.music.spec import MusicSpec

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
        if not MIN_MUSIC_S <= self.duration_s <= MAX_MUSIC_S:
            raise InvalidOption(
                f"duration_s must lie between {MIN_MUSIC_S:g} and {MAX_MUSIC_S:g}, not {self.duration_s:g}"
            )
        if self.seed < 0:
            raise InvalidOption(f"seed must not be negative, and is {self.seed}")


def require_whole(frames: int, sample_rate: int, duration_s: float) -> None:
    """Raise ServerError for music of so many frames that was to last `duration_s`: nothing is cut short in silence."""
    made_s = frames / sample_rate
    if made_s < duration_s - MUSIC_LENGTH_TOLERANCE_S:
        raise ServerError(f"the music ended after {made_s:.1f} s of {duration_s:g} s")


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
