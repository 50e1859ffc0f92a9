"""MusicGen behind the interface of every music engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.engine import Audio, MusicRequest
from attune_ensemble.music.musicgen.engine import MusicGenEngine
from attune_ensemble.music.musicgen.loading import Parts, engine_of, load_checkpoint, numerics_on, parts_of
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.threads import CLOSE_S, on_own_thread

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
        self._closed = False
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

    def generate(self, request: MusicRequest, chunk_s: float) -> Generator[Audio, None, None]:
        """Yield the music as [N, C] chunks: the first of a quarter of a second, then longer, at most `chunk_s`.

        The plan is asked for its prompt at each chunk, as far ahead as the music is made before it is taken: by
        `EngineSettings.ahead_s` and a chunk, about half a minute.

        While nothing is there, for want of a slot or of a step, an empty chunk comes every `HEARTBEAT_S`. Closing the
        generator frees the request's slot within a step. Raises `InvalidOption` for a prompt that is too long,
        `EngineBusy` where too many wait already, `ServerUnavailable` where the engine has failed for good, and
        `RequestTimeout` after the request's deadline.
        """
        sampling = request.sampling or self._sampling
        self._revive()
        plan = request.plan
        generation = Generation(
            plan.prompt_at(0.0), request.duration_s, request.seed, sampling, request.deadline_s, plan.prompt_at
        )
        stream = self._engine.submit(generation)
        return _cut(stream.chunks(HEARTBEAT_S), max(1, round(chunk_s * self.sample_rate)))

    def close(self) -> None:
        """End the engine and its threads; every piece that is not complete ends.

        An engine that is being made anew is closed once it is, and not waited for beyond `CLOSE_S`.
        """
        self._closed = True
        if not self._making.acquire(timeout=CLOSE_S):
            _log.error("the music engine is still being made anew after %g s; it will be closed once it is", CLOSE_S)
            return
        try:
            self._engine.close()
        finally:
            self._making.release()

    def _revive(self) -> None:
        """Replace an engine that has failed; whoever asks meanwhile is refused by the old one."""
        if self._engine.healthy or not self._making.acquire(blocking=False):
            return
        try:
            if not self._closed and not self._engine.healthy and time.monotonic() - self._made_s > RETRY_S:
                self._made_s = time.monotonic()
                self._engine.close()
                self._engine = self._make()
                _log.warning("the music engine was made anew")
                if self._closed:
                    self._engine.close()
        except Exception:
            _log.exception("the music engine could not be made anew")
        finally:
            self._making.release()


def _cut(chunks: Generator[Audio, None, None], most: int) -> Generator[Audio, None, None]:
    """The same audio in chunks of at most `most` frames; an empty one stays."""
    with closing(chunks):
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
