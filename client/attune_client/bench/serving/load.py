"""Many requests: so many at a time, or at random moments, whatever the server makes of them.

A *closed loop* has so many requests in flight; each is followed by the next one. It finds what a server can do, but
waits with it: while the server stands still nobody asks, and the waiting of all who would have asked is missing in its
figures (coordinated omission). An *open loop* sends at moments of a Poisson process, which are drawn before, and counts
from them: its figures are those of people who come by themselves.

Both go on until everything that counts has its answer, so that the last answers came under the same load as the others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from attune_client.bench.serving.asking import Ask, Sample, clock
from attune_client.bench.serving.targets import Request

__all__ = ["Window", "arrivals", "closed_loop", "open_loop"]

_PAUSE_S = 0.05
"""After an error, one of a closed loop asks again so much later: a server that refuses is not to be drowned."""

_POLL_S, _LOOK_S = 0.01, 0.1


@dataclass(slots=True)
class Window:
    """What counts, by `clock`: requests that were due from `start_s` on and before `end_s`; the load begins sooner.

    It is opened and closed while the load goes on; `counted` is how many requests that count have begun.
    """

    begin_s: float = field(default_factory=clock)
    start_s: float = math.inf
    end_s: float = math.inf
    counted: int = 0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    def holds(self, time_s: float) -> bool:
        """Whether a moment lies in it, as far as it is known."""
        return self.start_s <= time_s < self.end_s

    async def open_after(self, warmup_s: float) -> None:
        """Open it so many seconds after the load has begun."""
        await asyncio.sleep(max(0.0, self.begin_s + warmup_s - clock()))
        self.start_s = clock()

    async def close_after(self, seconds: float) -> None:
        """Close it that long after it was opened, or later, as soon as anything that counts has begun."""
        await asyncio.sleep(max(0.0, self.start_s + seconds - clock()))
        while not self.counted:
            await asyncio.sleep(_POLL_S)
        self.end_s = clock()


@dataclass(slots=True)
class _Progress:
    """What is in flight of that which counts."""

    window: Window
    samples: list[Sample] = field(default_factory=list)
    in_flight: int = 0

    @contextmanager
    def counting(self, planned_s: float) -> Iterator[None]:
        counts = self.window.holds(planned_s)
        self.window.counted += counts
        self.in_flight += counts
        try:
            yield
        finally:
            self.in_flight -= counts

    async def put_down(self, ask: Ask, request: Request, planned_s: float) -> Sample:
        with self.counting(planned_s):
            sample = await ask(request, planned_s)
        self.samples.append(sample)
        return sample

    def is_over(self, next_s: float) -> bool:
        """Whether one that is due then is not needed any more."""
        return next_s >= self.window.end_s and not self.in_flight

    async def is_wanted(self, planned_s: float) -> bool:
        """Wait until then, and no longer than it is needed; whether it is."""
        while (left_s := planned_s - clock()) > 0 and not self.is_over(clock()):
            await asyncio.sleep(min(left_s, _LOOK_S))
        return not self.is_over(min(planned_s, clock()))


async def closed_loop(ask: Ask, requests: Iterator[Request], concurrency: int, window: Window) -> list[Sample]:
    """Keep so many requests in flight; returns every sample, those before and after the window too."""
    progress = _Progress(window)

    async def one_after_the_other() -> None:
        while not progress.is_over(clock()):
            sample = await progress.put_down(ask, next(requests), clock())
            if not sample.is_answered:
                await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one_after_the_other())
    return progress.samples


async def open_loop(ask: Ask, requests: Iterator[Request], due_s: Iterator[float], window: Window) -> list[Sample]:
    """Send a request at each moment of `due_s`, seconds from when the load begins, whatever is still in flight.

    One that could not be sent in time is sent as soon as it can be, and is as late as that. Returns every sample.
    """
    progress = _Progress(window)
    async with asyncio.TaskGroup() as group:
        for after_s in due_s:
            planned_s = window.begin_s + after_s
            if not await progress.is_wanted(planned_s):
                break
            group.create_task(progress.put_down(ask, next(requests), planned_s))
            # It is in flight from here on, also where the next one is due already.
            await asyncio.sleep(0)
    return progress.samples


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """The moments of a Poisson process of so many a second, in seconds from its beginning; the same for a seed."""
    random, at_s = Random(seed), 0.0
    while True:
        at_s += random.expovariate(rate)
        yield at_s
