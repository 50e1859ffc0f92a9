"""The table, and the plot, of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from attune_ensemble.music.musicgen.benchmark.rows import EAGER, Measured

__all__ = ["decoder_table", "draw", "failure_list", "in_order", "part_table"]

_COLUMNS = ("what", "batch", "s", "audio s/s", "against eager", "ms/step", "GB/s", "of copy", "GiB", "first audio ms")

_KINDS = (
    "transformers generate, eager",
    "transformers generate",
    "static cache",
    "CUDA graphs,",
    "CUDA graphs of",
    "the engine",
)
"""How the names of rows begin, in the table's order."""


def in_order(rows: Sequence[Measured]) -> list[Measured]:
    """From the slow to the fast, size by size, int8 and what is compiled last: not as they were measured."""

    def place(row: Measured) -> tuple[float, int, bool, bool, int]:
        kind = next((at for at, name in enumerate(_KINDS) if row.name.startswith(name)), len(_KINDS))
        return row.seconds, row.batch, "compile" in row.name, "int8" in row.name, kind

    return sorted(rows, key=place)


def decoder_table(rows: Sequence[Measured], bandwidth: float) -> str:
    """Every row against transformers' eager one of the same batch and length; first audio as p50 / p95."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|---{'|---:' * (len(_COLUMNS) - 1)}|"]
    for row in rows:
        beside = (other for other in rows if (other.batch, other.seconds) == (row.batch, row.seconds))
        eager = next((other for other in beside if other.name == EAGER), None)
        cells = (
            row.name,
            str(row.batch),
            f"{row.timed_s or row.seconds:g}",
            f"{row.speed:.2f}",
            f"{row.speed / eager.speed:.2f}x" if eager else "",
            f"{row.step_ms:.2f}" if row.steps else "",
            f"{row.gb_per_s:.1f}" if row.steps else "",
            f"{1e11 * row.gb_per_s / bandwidth:.0f} %" if row.steps else "",
            f"{row.memory / 2**30:.1f}",
            _latency(row.first_audio_s),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def part_table(rows: Sequence[Measured]) -> str:
    """The parts beside the decoder."""
    lines = ["| part | ms | audio s / s |", "|---|---:|---:|"]
    lines += [f"| {row.name} | {1000 * row.wall_s:.1f} | {f'{row.speed:.1f}' if row.audio_s else ''} |" for row in rows]
    return "\n".join(lines)


def failure_list(failures: Sequence[str]) -> str:
    """What could not be measured."""
    return "\n".join(f"- not measured: {failure}" for failure in failures)


def _latency(times_s: Sequence[float]) -> str:
    if not times_s:
        return ""
    ordered = sorted(times_s)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"{1000 * statistics.median(ordered):.0f} / {1000 * p95:.0f}"


def draw(rows: Sequence[Measured], title: str, path: Path) -> None:
    """Bars of seconds of audio in a second, a group for each batch and length."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row.batch, row.seconds) for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(row.name for row in rows))}
    positions = [index + groups.index((row.batch, row.seconds)) for index, row in enumerate(rows)]
    bars = axes.barh(positions, [row.speed for row in rows], color=[colours[row.name] for row in rows])
    axes.bar_label(bars, [f"{row.speed:.2f}" for row in rows], padding=3)
    axes.set_yticks(positions, [f"{row.name}, batch {row.batch}, {row.seconds:g} s" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="seconds of audio per second (dotted: real time)")
    axes.margins(x=0.08)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
