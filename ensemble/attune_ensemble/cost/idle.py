"""One request at a time, to the models in this process and to the server in turn: what the server adds, and where."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy.typing as npt

from attune_client.bench.serving.asking import Ask, Sample, clock
from attune_client.bench.serving.report import table
from attune_client.bench.serving.statistics import Stage
from attune_client.bench.serving.targets import Request
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import EMOTION_RECOGNITION
from attune_client.protocol.tensors import Tensors
from attune_ensemble.call import UNLIMITED, Call, CallContext
from attune_ensemble.serving.configuration import read_config
from attune_ensemble.serving.local.graphs import create_ensemble

__all__ = ["Pair", "Step", "StepTimer", "Turns", "processor_table", "split_table", "take_turns", "time_steps"]

Spent = dict[str, float]
"""Processor time by process, in seconds."""

_REST_S = 3.0
_WORTH_MS = 0.5
"""A process that spends less than this on a request is shown among everything else."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The times of one request in this process and through the server, one after the other, in seconds."""

    local_s: float
    served_s: float


@dataclass(frozen=True, slots=True)
class Turns:
    """Requests that both were asked, one at a time.

    Processor time is in milliseconds of a request: of this process, and by process of the server, without what the
    server spends while it has nothing to do, which is `background_ms` a second.
    """

    pairs: list[Pair]
    local_ms: float
    served_ms: dict[str, float]
    background_ms: dict[str, float]

    @property
    def added_ms(self) -> float:
        """What the server adds to a request: the median of the differences."""
        return 1000 * median(pair.served_s - pair.local_s for pair in self.pairs)


async def take_turns(
    local: Ask,
    served: Ask,
    requests: Sequence[Request],
    rounds: int,
    spent: Callable[[], Spent],
    rest_s: float = _REST_S,
) -> Turns:
    """Ask each request of both, one at a time, and begin with the other one each round; a first round does not count.

    `spent` reads the server's processor time, whose background is that of `rest_s` seconds without a request.

    Raises:
        ServerError: one of them did not answer.
    """
    tally = _Tally(spent)
    for number in range(rounds + 1):
        if number == 1:
            tally = _Tally(spent)  # without the warm-up
        for request in requests:
            await tally.ask_both(local, served, request, served_first=number % 2 == 0)
    before = spent()
    await asyncio.sleep(rest_s)
    return tally.turns({name: value / rest_s for name, value in _difference(before, spent()).items()})


class _Tally:
    """Times of both sides; those of the processor of each while it alone is asked."""

    def __init__(self, spent: Callable[[], Spent]) -> None:
        self._spent = spent
        self._pairs: list[Pair] = []
        self._local_s = 0.0
        self._served_s: defaultdict[str, float] = defaultdict(float)

    async def ask_both(self, local: Ask, served: Ask, request: Request, served_first: bool) -> None:
        """Ask both, one after the other."""
        if served_first:
            served_s = await self._ask_served(served, request)
            self._pairs.append(Pair(await self._ask_local(local, request), served_s))
        else:
            local_s = await self._ask_local(local, request)
            self._pairs.append(Pair(local_s, await self._ask_served(served, request)))

    async def _ask_local(self, ask: Ask, request: Request) -> float:
        before_s = time.process_time()
        sample = await ask(request, clock())
        self._local_s += time.process_time() - before_s
        return _time_of(sample, request)

    async def _ask_served(self, ask: Ask, request: Request) -> float:
        before = self._spent()
        sample = await ask(request, clock())
        for name, value in _difference(before, self._spent()).items():
            self._served_s[name] += value
        return _time_of(sample, request)

    def turns(self, background_s: Spent) -> Turns:
        """The means of a request, where the server spends so much a second in any case."""
        count, waited_s = len(self._pairs), sum(pair.served_s for pair in self._pairs)
        work_s = {name: value - waited_s * background_s.get(name, 0.0) for name, value in self._served_s.items()}
        return Turns(
            self._pairs,
            1000 * self._local_s / count,
            {name: 1000 * value / count for name, value in work_s.items()},
            {name: 1000 * value for name, value in background_s.items()},
        )


def _difference(before: Spent, after: Spent) -> Spent:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _time_of(sample: Sample, request: Request) -> float:
    if not sample.is_answered:
        raise ServerError(f"{request.name} was not answered: {sample.error}")
    return sample.latency_s


class StepTimer:
    """A `Call` that puts down what each model took: seconds, and of them processor time, by its name."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.times_s: defaultdict[str, list[float]] = defaultdict(list)
        self.processor_s: defaultdict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext) -> Tensors:
        """Call the model, and put down its times."""
        started_s, spent_s = clock(), time.process_time()
        outputs = self._call(name, inputs, context=context)
        self.times_s[name].append(clock() - started_s)
        self.processor_s[name].append(time.process_time() - spent_s)
        return outputs


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the ensemble in this process: mean milliseconds of a request, and of processor time."""

    model: str
    ms: float
    processor_ms: float


def time_steps(call: Call, repository: Path, requests: Sequence[Request]) -> list[Step]:
    """Every step of `emotion_recognition` in this process, by the repository's configuration."""
    timer = StepTimer(call)
    ensemble = create_ensemble(read_config(repository / EMOTION_RECOGNITION.name), timer)
    for request in requests:
        ensemble.answer(request.inputs, context=UNLIMITED)
    return [
        Step(name, 1000 * mean(times_s), 1000 * mean(timer.processor_s[name]))
        for name, times_s in timer.times_s.items()
    ]


def split_table(steps: Sequence[Step], stages: Sequence[Stage]) -> str:
    """Each step in this process, beside what the server counts of it."""
    served = {stage.model: stage for stage in stages}
    heads = ["ms", "in one process", "served: queue", "input", "compute", "output", "all", "added"]
    return table(heads, [_split_row(step, served.get(step.model)) for step in steps])


def _split_row(step: Step, stage: Stage | None) -> list[str]:
    times = [step.ms]
    if stage is not None:
        times += [stage.queue_ms, stage.input_ms, stage.compute_ms, stage.output_ms, stage.total_ms]
        times += [stage.total_ms - step.ms]
    return [step.model, *(f"{value:.2f}" for value in times), *[""] * (7 - len(times))]


def processor_table(turns: Turns, steps: Sequence[Step]) -> str:
    """Processor time of a request in this process and in the server's, and what the server spends at rest."""
    sides = ({step.model: step.processor_ms for step in steps}, turns.served_ms, turns.background_ms)
    sums = (turns.local_ms, sum(turns.served_ms.values()), sum(turns.background_ms.values()))
    worth = (name for name, ms in turns.served_ms.items() if ms >= _WORTH_MS)
    names = list(dict.fromkeys([*sides[0], *worth]))
    rows = [[name, *(f"{side[name]:.2f}" if name in side else "" for side in sides)] for name in names]
    rest = [total - sum(side.get(name, 0.0) for name in names) for side, total in zip(sides, sums, strict=True)]
    rows += [["everything else", *(f"{ms:.2f}" for ms in rest)], ["sum", *(f"{ms:.2f}" for ms in sums)]]
    return table(["processor ms", "in one process", "served", "at rest, a second"], rows)
