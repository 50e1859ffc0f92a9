"""From a request's tensors to an engine, and from its audio back to tensors: what `music_generator` serves."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

from attune_client.protocol.bounds import DEFAULT_MUSIC_S
from attune_client.protocol.checks import check_complete, check_duration, check_seed
from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.sampling import SamplingSettings
from attune_client.protocol.tensors import Tensors, text_of
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.music.engine import MusicEngine, MusicRequest
from attune_ensemble.music.plan import ConstantPlan
from attune_ensemble.music.registry import EngineOptions, create_engine

DRAWN_SEED_BITS = 53
"""Size of a seed that is drawn: every reader of JSON keeps a whole number of 53 bits as it is, and few one of 63."""

_HEARTBEAT_S = 0.1
_WORK = "the music"
_CLOSED = "the music service is closing"
_SAMPLING = tuple(field.name for field in fields(SamplingSettings))


class MusicService:
    """Answers requests with one of the engines; each engine is made once, when it is first asked for.

    `default_engine` plays where the request names none; a chunk lasts about `chunk_s` seconds.
    """

    def __init__(self, default_engine: str, chunk_s: float, options: EngineOptions) -> None:
        self._default_engine = default_engine
        self._chunk_s = chunk_s
        self._options = options
        self._engines: dict[str, Future[MusicEngine]] = {}
        self._making = threading.Lock()
        self._closed = False
        self._engine(default_engine).result()  # at start-up, not in front of the first listener

    def play(self, inputs: Tensors, *, context: CallContext = UNLIMITED) -> Generator[dict[str, Any], None, None]:
        """First the announcement, then one `music` [N, C] after the other, or nothing for now.

        The announcement is `engine`, `sample_rate`, `duration_s` and `seed`, those that were asked for or else those
        that were chosen; with `check_only` nothing follows it, and no prompt or specification is looked at.

        Raises `InvalidOption` for an unknown engine, or a length, seed or specification out of range;
        `ServerUnavailable` once the service is closed; `StreamEndedEarly` at the end of music that is shorter than what
        was asked for, and what `CallContext.check` raises. Closing it stops the engine's work.
        """
        duration_s, seed = read_options(inputs)
        only_check = "check_only" in inputs and bool(inputs["check_only"].flat[0])
        request = None if only_check else read_request(inputs, duration_s, seed)
        engine = yield from self._choose(inputs, context)
        yield {
            "engine": engine.name,
            "sample_rate": [engine.sample_rate],
            "duration_s": [duration_s],
            "seed": [seed],
        }
        if request is None:
            return
        frames = 0
        with closing(engine.generate(replace(request, deadline_s=context.left_s()), self._chunk_s)) as chunks:
            for chunk in chunks:
                context.check(_WORK)
                frames += len(chunk)
                yield {"music": chunk} if len(chunk) else {}
        check_complete(frames, engine.sample_rate, request.duration_s)

    def close(self) -> None:
        """Close every engine, and make no more; one that is still being made is not waited for, and closed once it is.

        An engine that cannot be closed is logged, and keeps no other from it.
        """
        with self._making:
            self._closed = True
            engines, self._engines = self._engines, {}
        for future in engines.values():
            future.add_done_callback(_close_made)

    def metrics(self) -> dict[str, float]:
        """What the engines that were made count, by name."""
        made = [future.result() for future in tuple(self._engines.values()) if future.done() and not future.exception()]
        return {name: value for engine in made for name, value in engine.metrics().items()}

    def _engine(self, name: str) -> Future[MusicEngine]:
        """The engine of that name, which is made in a thread of its own when it is first asked for.

        Raises `ServerUnavailable` once the service is closed.
        """
        with self._making:  # two requests at once must not make two
            if self._closed:
                raise ServerUnavailable(_CLOSED)
            if name not in self._engines:
                maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"make-{name}")
                self._engines[name] = maker.submit(create_engine, name, self._options)
                maker.shutdown(wait=False)
            return self._engines[name]

    def _choose(self, inputs: Tensors, context: CallContext) -> Generator[dict[str, Any], None, MusicEngine]:
        """The engine that was asked for; while it is being made, nothing again and again, so that listeners may go."""
        name = (text_of(inputs["engine"]) if "engine" in inputs else "") or self._default_engine
        future = self._engine(name)
        while not wait([future], _HEARTBEAT_S).done:
            context.check(_WORK)
            yield {}
        if future.exception():  # whoever asks next tries again
            with self._making:
                if self._engines.get(name) is future:
                    del self._engines[name]
        if self._closed:  # meanwhile: the engine is closed as well
            raise ServerUnavailable(_CLOSED)
        return future.result()


def _close_made(future: Future[MusicEngine]) -> None:
    """Close what was made, if it was; `Future` logs what this raises."""
    if future.exception() is None:
        future.result().close()


def read_options(inputs: Tensors) -> tuple[float, int]:
    """Length in seconds and seed; a seed that was not sent is drawn. Raises `InvalidOption` for one out of range."""
    duration_s = inputs["duration_s"].flat[0] if "duration_s" in inputs else DEFAULT_MUSIC_S
    seed = inputs["seed"].flat[0] if "seed" in inputs else secrets.randbits(DRAWN_SEED_BITS)
    return check_duration(duration_s), check_seed(seed)


def read_request(inputs: Tensors, duration_s: float, seed: int) -> MusicRequest:
    """The request in an engine's terms; raises `InvalidOption` for a specification or sampling out of range."""
    return MusicRequest(
        plan=ConstantPlan(MusicSpec.from_json(text_of(inputs["music_spec"])), text_of(inputs["prompt"])),
        duration_s=duration_s,
        seed=seed,
        sampling=_read_sampling(inputs),
    )


def _read_sampling(inputs: Tensors) -> SamplingSettings | None:
    given = {name: inputs[name].flat[0].item() for name in _SAMPLING if name in inputs}
    return SamplingSettings(**given) if given else None
