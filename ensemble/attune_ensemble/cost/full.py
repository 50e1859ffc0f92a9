"""As many requests as this process and the server can do, in rounds of one and the other, so that noise meets both."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from attune_client.bench.serving.asking import Ask
from attune_client.bench.serving.measuring import AtATime, Measured, Plan, Reading, measure
from attune_client.bench.serving.report import table
from attune_client.bench.serving.targets import Target
from attune_client.protocol.errors import ServerError

__all__ = ["Figures", "Row", "Side", "best_ratio", "full_table", "own_processor", "take_rounds"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: how it is asked, and how its processor time is read."""

    ask: Ask
    read: Callable[[], Awaitable[Reading]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds of one load: answers a second, seconds to an answer, and ms of processor time for one."""

    answers_per_s: float
    p50_s: float
    processor_ms: float

    @classmethod
    def of(cls, rounds: Sequence[Measured]) -> Self:
        """Of the rounds of one load; `ServerError` where nothing was answered."""
        totals = [each.summary.total for each in rounds]
        if None in totals:
            raise ServerError(f"{rounds[0].model}, {rounds[0].load}: no answers, {rounds[0].summary.errors}")
        return cls(
            median(each.summary.answers_per_s for each in rounds),
            median(total.p50 for total in totals if total is not None),
            median(sum(each.server_processor_ms.values()) for each in rounds),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One load on both."""

    concurrency: int
    local: Figures
    served: Figures


async def own_processor() -> Reading:
    """The processor time of this process."""
    return Reading(processor_s={"this process": time.process_time()})


async def take_rounds(
    local: Side, served: Side, target: Target, concurrency: Sequence[int], plan: Plan, rounds: int
) -> list[Row]:
    """Put each load on both, round after round; raises as `measure` and `Figures.of` do."""
    measured: dict[tuple[int, Side], list[Measured]] = {(n, side): [] for n in concurrency for side in (local, served)}
    for _ in range(rounds):
        for (number, side), so_far in measured.items():
            so_far.append(await measure(side.ask, target, AtATime(number), plan, side.read))
    return [Row(n, Figures.of(measured[n, local]), Figures.of(measured[n, served])) for n in concurrency]


def best_ratio(rows: Sequence[Row]) -> float:
    """The server's best throughput in parts of the best of this process, whichever load each has it at."""
    return max(row.served.answers_per_s for row in rows) / max(row.local.answers_per_s for row in rows)


def full_table(rows: Sequence[Row]) -> str:
    """Throughput, latency and processor time of both, and the ratios."""
    heads = [
        *("at a time", "in one process: answers/s", "p50 ms", "processor ms"),
        *("served: answers/s", "p50 ms", "processor ms", "throughput", "processor"),
    ]
    return table(heads, [_row(row) for row in rows], words=0)


def _row(row: Row) -> list[str]:
    cells = [str(row.concurrency)]
    for side in (row.local, row.served):
        cells += [f"{side.answers_per_s:.2f}", f"{1000 * side.p50_s:.1f}", f"{side.processor_ms:.1f}"]
    throughput = row.served.answers_per_s / row.local.answers_per_s
    spent = row.served.processor_ms / row.local.processor_ms if row.local.processor_ms else 0.0
    return [*cells, f"{throughput:.2f}x", f"{spent:.2f}x"]
