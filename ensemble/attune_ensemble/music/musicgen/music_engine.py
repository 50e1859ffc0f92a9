"""MusicGen behind the interface of every music engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.engine import Audio, MusicRequest
from attune_ensemble.music.musicgen.engine import EngineSettings, MusicGenEngine
from attune_ensemble.music.musicgen.loading import Parts, engine_of, load_checkpoint, numerics_on, parts_of
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.threads import on_own_thread

__all__ = ["HEARTBEAT_S", "RETRY_S", "MusicGenAdapter", "load_engine"]

HEARTBEAT_S = 0.05
"""How long a listener that has gone goes unnoticed."""

RETRY_S = 10.0
"""Least time between two engines."""

_log = logging.getLogger(__name__)


class MusicGenAdapter:
    """Hands each request to the running batch; many threads may ask at once.

    An engine that has failed for good is made anew at the next request, but not again within `RETRY_S`; until there is
    one that works, every request is refused at once.
    """

    name = "musicgen"

    def __init__(self, make: Callable[[], MusicGenEngine], sampling: SamplingSettings) -> None:
        """`make` returns a running engine; it raises what keeps it from that."""
        self._make, self._sampling = make, sampling
        self._making = threading.Lock()
        self._engine = make()
        self._made_s = time.monotonic()
        self.sample_rate = self._engine.codec.sample_rate

    @property
    def healthy(self) -> bool:
        """Whether the engine makes music."""
        return self._engine.healthy

    def metrics(self) -> dict[str, float]:
        """What the engine counts, by the names of `METRICS`."""
        return self._engine.statistics().metrics()

    def generate(self, request: MusicRequest, chunk_s: float) -> Iterator[Audio]:
        """Yield the music as [N, C] chunks: the first of a quarter of a second, then longer, at most `chunk_s`.

        While nothing is there, for want of a slot or of a step, an empty chunk comes every `HEARTBEAT_S`. Closing the
        iterator frees the request's slot within a step. Raises `InvalidOption` for a prompt that is too long,
        `EngineBusy` where too many wait already, and `ServerUnavailable` where the engine has failed for good.
        """
        sampling = request.sampling or self._sampling
        self._revive()
        stream = self._engine.submit(Generation(request.prompt, request.duration_s, request.seed, sampling))
        return _cut(stream.chunks(HEARTBEAT_S), max(1, round(chunk_s * self.sample_rate)))

    def _revive(self) -> None:
        """Replace an engine that has failed; whoever asks meanwhile is refused by the old one."""
        if self._engine.healthy or not self._making.acquire(blocking=False):
            return
        try:
            if not self._engine.healthy and time.monotonic() - self._made_s > RETRY_S:
                self._made_s = time.monotonic()
                self._engine.close()
                self._engine = self._make()
                _log.warning("the music engine was made anew")
        except Exception:
            _log.exception("the music engine could not be made anew")
        finally:
            self._making.release()


def _cut(chunks: Iterator[Audio], most: int) -> Iterator[Audio]:
    """The same audio in chunks of at most `most` frames; an empty one stays."""
    for chunk in chunks:
        for start in range(0, max(len(chunk), 1), most):
            yield chunk[start : start + most]


def load_engine(checkpoint: Path, device: str, numerics: str, slots: int, queue: int) -> MusicGenAdapter:
    """A running engine on a checkpoint; empty `numerics` are int8 on a CPU and bfloat16 on a GPU.

    Raises `CheckpointError` where the folder holds no MusicGen, or there are no such numerics on the device.
    """
    chosen = numerics_on(device, numerics)

    def load() -> Parts:
        return parts_of(*load_checkpoint(checkpoint), numerics=chosen, device=device)

    parts = on_own_thread(load)

    def make() -> MusicGenEngine:
        engine = on_own_thread(lambda: engine_of(parts, EngineSettings(slots=slots, queue=queue)))
        try:
            engine.warm_up()
        except BaseException:
            engine.close()
            raise
        return engine

    return MusicGenAdapter(make, SamplingSettings())
