"""What the processes do: answer the clips a row's way, or measure the rates. Each imports what it needs, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune_export.bench_encoders.clip import Clip
from attune_export.bench_encoders.engines import answers, engine_of
from attune_export.bench_encoders.ways import EAGER, Device, Graphs, Row

if TYPE_CHECKING:
    from attune_export.bench_encoders.towers import Tower

__all__ = ["Preparation", "RateMeter", "RowJob"]


@dataclass(frozen=True, slots=True)
class RowJob:
    """Answers `clips`, or those that it is asked for, with the files in `folder` and `threads` threads in all."""

    row: Row
    folder: Path
    device: Device
    threads: int
    clips: tuple[Clip, ...]

    def ready(self) -> Callable[[Any], Any]:
        """Return what answers; the row has run once on every shape, or in PyTorch, which keeps none, on one batch."""
        row = replace(self.row, instances=self.row.instances or self.threads)
        threads = row.threads or max(1, self.threads // row.instances)
        engine = engine_of(row, self.folder, self.device, threads)
        is_plain = row.graphs == EAGER and not row.compiled and self.device == "cpu"
        answers(engine, self.clips[: row.batching.size] if is_plain else self.clips, row)
        return lambda asked: answers(engine, self.clips if asked is None else asked, row)


@dataclass(frozen=True, slots=True)
class RateMeter:
    """Measures products of matrices; `size` None: one that is large for the device."""

    device: Device
    threads: int
    size: int | None = None

    def ready(self) -> Callable[[Any], Any]:
        """Return what measures the rates."""
        from attune_export.bench_encoders.rates import Rates

        rates = Rates(self.device, self.threads, self.size)
        return lambda _: rates()


@dataclass(frozen=True, slots=True)
class Preparation:
    """Makes the files that the rows run; in a process of its own, since it takes much memory."""

    tower: Tower
    wanted: frozenset[Graphs]
    folder: Path

    def ready(self) -> Callable[[Any], Any]:
        """Make them."""
        from attune_export.bench_encoders.graphs import prepare

        prepare(self.tower, self.wanted, self.folder)
        return lambda _: None
