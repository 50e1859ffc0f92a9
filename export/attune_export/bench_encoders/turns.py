"""Measuring rows side by side: one process each, asked in turn for one pass, so that only one works at a time.

The first row and the products of matrices are asked in every round. The others are taken in groups, as many as the
memory holds, and each is compared with what the first row took in the rounds of its own group.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune_export.bench_encoders.worker import Answered, Job, RowFailed, Worker

__all__ = ["Measurements", "Timed", "available_bytes", "take_turns"]

_RESERVE_BYTES = 2 * 2**30


@dataclass(slots=True)
class Timed:
    """The passes of one row, those of the first row in the same rounds, and the answers to the labelled clips
    of each part."""

    passes: list[Answered] = field(default_factory=list)
    beside: list[Answered] = field(default_factory=list)
    labelled: dict[str, Any] = field(default_factory=dict)

    @property
    def wall_s(self) -> float:
        """Median wall time of a pass, in seconds."""
        return statistics.median(taken.wall_s for taken in self.passes)

    @property
    def ratio(self) -> float:
        """How many times as fast as the first row it is."""
        return statistics.median(taken.wall_s for taken in self.beside) / self.wall_s


@dataclass(slots=True)
class Measurements:
    """The rows by name, the rates of every round, and why a row failed."""

    rows: dict[str, Timed] = field(default_factory=dict)
    rates: list[Mapping[str, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def available_bytes() -> int:
    """Return how much memory a new process may take on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def take_turns(
    jobs: Mapping[str, Job],
    rates: Job,
    repeats: int,
    labelled: Mapping[str, Any] | None = None,
    *,
    available: Callable[[], int] = available_bytes,
    say: Callable[[str], None] = lambda line: None,
) -> Measurements:
    """Measure every job `repeats` times; the first one is what the others are compared with.

    `labelled` are further requests, by name, that each row answers once, untimed; `say` is told what has been done.

    Raises:
        RowFailed: the first row, or the one of the rates, cannot be measured.
    """
    turns = _Turns(jobs, repeats, labelled or {}, available, say)
    return turns.run(rates)


class _Turns:
    def __init__(
        self,
        jobs: Mapping[str, Job],
        repeats: int,
        labelled: Mapping[str, Any],
        available: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self._first, *self._waiting = jobs
        self._jobs = jobs
        self._repeats = repeats
        self._labelled = labelled
        self._available = available
        self._say = say
        self._workers: dict[str, Worker] = {}
        self._largest_bytes = 0
        self._found = Measurements()

    def run(self, rates: Job) -> Measurements:
        meter = Worker(rates)
        try:
            self._start(self._first)
            while True:
                self._start_group()
                self._rounds(meter)
                self._answer_labelled()
                for name in [name for name in self._workers if name != self._first]:
                    self._workers.pop(name).close()
                if not self._waiting:
                    return self._found
        finally:
            for worker in (meter, *self._workers.values()):
                worker.close()

    def _start_group(self) -> None:
        """Start rows until the memory is full, one at least."""
        while self._waiting:
            room = self._available() >= _RESERVE_BYTES + self._largest_bytes
            if not room and len(self._workers) > 1:
                return
            name = self._waiting.pop(0)
            self._guarded(name, lambda name=name: self._start(name))  # type: ignore[misc]

    def _start(self, name: str) -> None:
        self._say(f"{name}: getting ready")
        worker = Worker(self._jobs[name])
        self._workers[name] = worker
        self._largest_bytes = max(self._largest_bytes, worker.peak_bytes)
        self._found.rows.setdefault(name, Timed())

    def _rounds(self, meter: Worker) -> None:
        for number in range(1, self._repeats + 1):
            self._found.rates.append(meter.ask().answers)
            beside: Answered | None = None
            for name in list(self._workers):
                passed = self._guarded(name, lambda name=name: self._workers[name].ask())  # type: ignore[misc]
                if passed is None:
                    continue
                beside = beside or passed
                self._found.rows[name].passes.append(passed)
                self._found.rows[name].beside.append(beside)
                self._say(f"{name}: pass {number} of {self._repeats}, {passed.wall_s:.2f} s")

    def _answer_labelled(self) -> None:
        for name in list(self._workers):
            timed = self._found.rows[name]
            for part, request in self._labelled.items():
                if part in timed.labelled:
                    continue
                reply = self._guarded(name, lambda name=name, request=request: self._workers[name].ask(request))  # type: ignore[misc]
                if reply is None:
                    break
                timed.labelled[part] = reply.answers
                self._say(f"{name}: {part} answered")

    def _guarded(self, name: str, act: Callable[[], Any]) -> Any:
        """Do something for a row; if it fails, the row is out, and why is kept. The first row must not fail."""
        try:
            return act()
        except RowFailed as error:
            if name == self._first:
                raise
            self._found.failures[name] = str(error)
            self._found.rows.pop(name, None)
            if worker := self._workers.pop(name, None):
                worker.close()
            self._say(f"{name}: failed: {error}")
            return None
