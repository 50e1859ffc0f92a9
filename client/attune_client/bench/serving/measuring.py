"""One load, with readings of the server and of the processor at both ends of what counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from attune_client.bench.serving.asking import Ask, Sample
from attune_client.bench.serving.load import Window, arrivals, closed_loop, open_loop
from attune_client.bench.serving.statistics import Counts, Stage, differences
from attune_client.bench.serving.summary import Summary, summarise
from attune_client.bench.serving.targets import Target, in_random_order

__all__ = ["AtATime", "Load", "Measured", "PerSecond", "Plan", "Reading", "measure"]


@dataclass(frozen=True, slots=True)
class AtATime:
    """A closed loop."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class PerSecond:
    """An open loop: so many requests a second, at random moments."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g}/s at random"


Load = AtATime | PerSecond


@dataclass(frozen=True, slots=True)
class Plan:
    """How a load is measured: times in seconds; answers within `limit_s` are good ones; the seed is that of chance."""

    seconds: float = 10.0
    warmup_s: float = 2.0
    limit_s: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known at one moment: the server's counters, and processor time by process, in seconds."""

    counts: Mapping[str, Counts] = field(default_factory=dict)
    processor_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load on a model was: its summary, the server's own split, and processor time.

    `stages` is what each model counted. `server_processor_ms` is the processor time of each of the server's processes
    for an answer (empty where it is not known), and `own_cores` how many cores this process was busy with.
    """

    model: str
    load: Load
    summary: Summary
    stages: list[Stage]
    server_processor_ms: dict[str, float]
    own_cores: float


Read = Callable[[], Awaitable[Reading]]


async def measure(ask: Ask, target: Target, load: Load, plan: Plan, read: Read) -> Measured:
    """Put the load on a model; raises what `read` raises, and what of `ask` is no error of a request."""
    window = Window()
    driving = asyncio.create_task(_drive(ask, target, load, plan, window))
    counting = asyncio.create_task(_count(window, plan, read))
    try:
        # The load lasts until the window is closed, unless it fails.
        await asyncio.wait({driving, counting}, return_when=asyncio.FIRST_COMPLETED)
        if driving.done():
            driving.result()
        before, after, own_s = await counting
        samples = await driving
    finally:
        for task in (driving, counting):
            task.cancel()  # does nothing to one that has ended
    summary = summarise(samples, window, plan.limit_s, target.model.decoupled)
    return Measured(
        target.model.name,
        load,
        summary,
        differences(before.counts, after.counts),
        _for_an_answer(before.processor_s, after.processor_s, summary),
        own_s / window.seconds,
    )


async def _drive(ask: Ask, target: Target, load: Load, plan: Plan, window: Window) -> list[Sample]:
    requests = in_random_order(target.requests, plan.seed)
    match load:
        case AtATime(concurrency):
            return await closed_loop(ask, requests, concurrency, window)
        case PerSecond(rate):
            return await open_loop(ask, requests, arrivals(rate, plan.seed), window)


async def _count(window: Window, plan: Plan, read: Read) -> tuple[Reading, Reading, float]:
    """Open the window and close it; returns the readings at both ends, and this process's processor time between."""
    await window.open_after(plan.warmup_s)
    before, own_before_s = await read(), time.process_time()
    await window.close_after(plan.seconds)
    own_s = time.process_time() - own_before_s
    return before, await read(), own_s


def _for_an_answer(before: Mapping[str, float], after: Mapping[str, float], summary: Summary) -> dict[str, float]:
    """Milliseconds of processor time by process; of a process that was started meanwhile, all of it."""
    answers = summary.answers_per_s * summary.seconds
    spent_s = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {name: 1000 * max(0.0, value) / answers for name, value in spent_s.items()} if answers else {}
