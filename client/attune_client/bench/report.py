"""Reports of the benchmarks: the hardware, a table with ratios against a named baseline, one JSON line last."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: its times in seconds, the row of the same table that is its baseline, and a remark."""

    name: str
    times_s: tuple[float, ...]
    baseline: str | None = None
    note: str = ""

    @property
    def median_s(self) -> float:
        """Median time, in seconds."""
        return statistics.median(self.times_s)


def hardware_line() -> str:
    """Return the line above a benchmark's figures."""
    return f"hardware: {hardware()}"


def hardware() -> str:
    """Describe the machine: processor, usable cores, memory, system and Python."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_kb = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    processor = names[0] if names else platform.processor() or platform.machine()
    memory = f", {memory_kb[0] / 2**20:.0f} GiB" if memory_kb else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores{memory}; {platform.system()}, Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of medians, ranges, and the speed-up of each row over its baseline."""
    medians = {row.name: row.median_s for row in rows}
    lines = ["| what | median s | min..max s | runs | against |", "|---|---:|---:|---:|---|"]
    for row in rows:
        against = f"{medians[row.baseline] / row.median_s:.2f}x faster than {row.baseline}" if row.baseline else ""
        against = "; ".join(filter(None, (against, row.note)))
        spread = f"{min(row.times_s):.2f}..{max(row.times_s):.2f}"
        lines.append(f"| {row.name} | {row.median_s:.2f} | {spread} | {len(row.times_s)} | {against} |")
    return "\n".join(lines)


def json_line(rows: Sequence[Row], **more: float) -> str:
    """Return all measurements as one line of JSON."""
    return json.dumps({"rows": [asdict(row) | {"median_s": row.median_s} for row in rows]} | more)
