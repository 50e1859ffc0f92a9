"""One request, timed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.serving.targets import Request
from attune_client.protocol.checks import check_complete
from attune_client.protocol.errors import AttuneError, ServerBusy, ServerError
from attune_client.protocol.stages import STAGES
from attune_client.protocol.tensors import ModelSpec, Tensors

__all__ = ["REFUSED", "Ask", "Sample", "ask_server", "clock", "stages_of"]

clock = time.perf_counter
"""Seconds, for every time of a load."""

REFUSED = "refused"
"""The kind of error of a request that the server did not take on: it is as it should be under too much load."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How one request went; times of `clock`, in seconds.

    `planned_s` is when it was due, and latency counts from there: what the load generator, or a queue in front of it,
    kept waiting was waited for. `first_s` is when the first music came, and `ended_s` for a model that does not stream.
    `error` is the kind of error, empty for an answer. `stages_s` are the pipeline's own times, as the answer tells.
    """

    planned_s: float
    sent_s: float
    first_s: float
    ended_s: float
    audio_s: float
    error: str = ""
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def is_answered(self) -> bool:
        """Whether the answer came, all of it."""
        return not self.error

    @property
    def first_latency_s(self) -> float:
        """From when it was due to the first of its answer, in seconds."""
        return self.first_s - self.planned_s

    @property
    def latency_s(self) -> float:
        """From when it was due to the end of its answer, in seconds."""
        return self.ended_s - self.planned_s


Ask = Callable[[Request, float], Awaitable[Sample]]
"""Sends a request that was due at a time of `clock`."""


async def ask_server(client: AsyncAttuneClient, model: ModelSpec, request: Request, planned_s: float) -> Sample:
    """Send a request and read all of its answer; an `AttuneError` becomes the sample's kind of error."""
    sent_s = clock()
    firsts_s: list[float] = []
    stages_s: dict[str, float] = {}
    try:
        if model.decoupled:
            stages_s = await _listen(client, model, request, lambda: firsts_s.append(clock()))
        else:
            stages_s = stages_of(await client.infer(model, request.inputs))
        error = ""
    except ServerBusy:
        error = REFUSED
    except AttuneError as raised:
        error = raised.code
    ended_s = clock()
    first_s = firsts_s[0] if firsts_s else ended_s
    return Sample(planned_s, sent_s, first_s, ended_s, request.audio_s, error, stages_s)


async def _listen(
    client: AsyncAttuneClient, model: ModelSpec, request: Request, heard: Callable[[], None]
) -> dict[str, float]:
    """Listen to all of the music; returns the stages' times. `StreamEndedEarly` where it is not all there."""
    told: Tensors = {}
    frames = 0
    async with aclosing(client.stream(model, request.inputs)) as responses:
        async for tensors in responses:
            told = told or tensors
            if "music" in tensors:
                heard()
                frames += len(tensors["music"])
    if not {"sample_rate", "duration_s"} <= told.keys():
        raise ServerError("the server announced no music")
    check_complete(frames, int(told["sample_rate"][0]), float(told["duration_s"][0]))
    return stages_of(told)


def stages_of(tensors: Tensors) -> dict[str, float]:
    """The pipeline's own times, in seconds by stage, as far as an answer has them."""
    times = {stage.name: stage.time.name for stage in STAGES if stage.time is not None}
    return {stage: float(tensors[name][0]) for stage, name in times.items() if name in tensors}
