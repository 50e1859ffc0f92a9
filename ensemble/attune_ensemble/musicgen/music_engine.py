"""MusicGen behind the interface of every music engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attune_ensemble.music.engine import Audio, MusicRequest
from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.musicgen.engine import EngineSettings, MusicGenEngine
from attune_ensemble.musicgen.loading import engine_of, load_checkpoint, numerics_on, parts_of
from attune_ensemble.musicgen.requests import Generation
from attune_ensemble.musicgen.threads import on_own_thread

__all__ = ["HEARTBEAT_S", "MusicGenAdapter", "load_engine"]

HEARTBEAT_S = 0.05
"""How long a listener that has gone goes unnoticed."""


class MusicGenAdapter:
    """Hands each request to the running batch; many threads may ask at once."""

    name = "musicgen"

    def __init__(self, engine: MusicGenEngine, sampling: SamplingSettings) -> None:
        self._engine, self._sampling = engine, sampling
        self.sample_rate = engine.codec.sample_rate

    def metrics(self) -> dict[str, float]:
        """What the engine counts, by the names of `METRICS`."""
        return self._engine.statistics().metrics()

    def generate(self, request: MusicRequest, chunk_s: float) -> Iterator[Audio]:
        """Yield the music as [N, C] chunks: the first of a quarter of a second, then longer, at most `chunk_s`.

        While nothing is there, for want of a slot or of a step, an empty chunk comes every `HEARTBEAT_S`. Closing the
        iterator frees the request's slot within a step. Raises `InvalidOption` for a prompt that is too long, and
        `EngineBusy` where too many wait already.
        """
        sampling = request.sampling or self._sampling
        stream = self._engine.submit(Generation(request.prompt, request.duration_s, request.seed, sampling))
        return _cut(stream.chunks(HEARTBEAT_S), max(1, round(chunk_s * self.sample_rate)))


def _cut(chunks: Iterator[Audio], most: int) -> Iterator[Audio]:
    """The same audio in chunks of at most `most` frames; an empty one stays."""
    for chunk in chunks:
        for start in range(0, max(len(chunk), 1), most):
            yield chunk[start : start + most]


def load_engine(checkpoint: Path, device: str, numerics: str, slots: int, queue: int) -> MusicGenAdapter:
    """A running engine on a checkpoint; empty `numerics` are int8 on a CPU and bfloat16 on a GPU.

    Raises `CheckpointError` where the folder holds no MusicGen, or the numerics do not fit the device or do not exist.
    """
    chosen = numerics_on(device, numerics)  # before anything is loaded

    def load() -> MusicGenEngine:
        parts = parts_of(*load_checkpoint(checkpoint), numerics=chosen, device=device)
        return engine_of(parts, EngineSettings(slots=slots, queue=queue))

    engine = on_own_thread(load)
    engine.warm_up()
    return MusicGenAdapter(engine, SamplingSettings())
