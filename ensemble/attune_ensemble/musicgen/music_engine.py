"""MusicGen behind the interface of every music engine."""

from __future__ import annotations

from collections.abc import Iterator

from attune_ensemble.music.engine import Audio, MusicRequest
from attune_ensemble.musicgen.engine import MusicGenEngine
from attune_ensemble.musicgen.requests import Generation
from attune_ensemble.musicgen.sampling import SamplingSettings

__all__ = ["MusicGenAdapter"]


class MusicGenAdapter:
    """Hands each request to the running batch; many threads may ask at once."""

    name = "musicgen"

    def __init__(self, engine: MusicGenEngine, sampling: SamplingSettings) -> None:
        self._engine, self._sampling = engine, sampling
        self.sample_rate = engine.codec.sample_rate

    def generate(self, request: MusicRequest, chunk_s: float) -> Iterator[Audio]:
        """Yield the music as [N, C] chunks: the first of a quarter of a second, then longer, at most `chunk_s`.

        Closing the iterator frees the request's slot within a step.
        """
        stream = self._engine.submit(Generation(request.prompt, request.duration_s, request.seed, self._sampling))
        most = max(1, round(chunk_s * self.sample_rate))
        for chunk in stream:
            for start in range(0, len(chunk), most):
                yield chunk[start : start + most]
