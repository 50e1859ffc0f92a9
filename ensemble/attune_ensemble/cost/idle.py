"""One request at a time, to the models in this process and to the server in turn: what the server adds, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
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

__all__ = ["Pair", "StepTimer", "added_ms", "split_table", "take_turns", "time_steps"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The times of one request in this process and through the server, one after the other, in seconds."""

    local_s: float
    served_s: float


async def take_turns(local: Ask, served: Ask, requests: Sequence[Request], rounds: int) -> list[Pair]:
    """Ask each request of both, one at a time, and begin with the other one each round; a first round does not count.

    Raises:
        ServerError: one of them did not answer.
    """
    pairs = []
    for number in range(rounds + 1):
        for request in requests:
            order = (local, served) if number % 2 else (served, local)
            times_s = {ask: _time_of(await ask(request, clock()), request) for ask in order}
            if number:
                pairs.append(Pair(times_s[local], times_s[served]))
    return pairs


def _time_of(sample: Sample, request: Request) -> float:
    if not sample.is_answered:
        raise ServerError(f"{request.name} was not answered: {sample.error}")
    return sample.latency_s


def added_ms(pairs: Sequence[Pair]) -> float:
    """What the server adds to a request: the median of the differences, in milliseconds."""
    return 1000 * median(pair.served_s - pair.local_s for pair in pairs)


class StepTimer:
    """A `Call` that puts down how long each model took, in seconds by its name."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.times_s: defaultdict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext) -> Tensors:
        """Call the model, and put down its time."""
        started_s = clock()
        outputs = self._call(name, inputs, context=context)
        self.times_s[name].append(clock() - started_s)
        return outputs


def time_steps(call: Call, repository: Path, requests: Sequence[Request]) -> dict[str, float]:
    """The mean milliseconds of each step of `emotion_recognition` in this process, by the step's name."""
    timer = StepTimer(call)
    ensemble = create_ensemble(read_config(repository / EMOTION_RECOGNITION.name), timer)
    for request in requests:
        ensemble.answer(request.inputs, context=UNLIMITED)
    return {name: 1000 * sum(times_s) / len(times_s) for name, times_s in timer.times_s.items()}


def split_table(steps_ms: dict[str, float], stages: Sequence[Stage]) -> str:
    """Each step in this process, beside what the server counts of it."""
    served = {stage.model: stage for stage in stages}
    heads = ["ms", "in one process", "served: queue", "input", "compute", "output", "all", "added"]
    rows = [_split_row(name, ms, served.get(name)) for name, ms in steps_ms.items()]
    return table(heads, rows)


def _split_row(name: str, local_ms: float, stage: Stage | None) -> list[str]:
    times: list[Any] = [local_ms]
    if stage is not None:
        times += [stage.queue_ms, stage.input_ms, stage.compute_ms, stage.output_ms, stage.total_ms]
        times += [stage.total_ms - local_ms]
    return [name, *(f"{value:.2f}" for value in times), *[""] * (7 - len(times))]
