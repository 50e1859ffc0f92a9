"""The tables that are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attune_export.bench_encoders.results import Result, Vad

__all__ = ["ccc_table", "rate_line", "row_table", "skipped_list"]

_COLUMNS = (
    "row",
    "what",
    "utterances/s",
    "x real time",
    "ratio",
    "of the floor",
    "padding",
    "max deviation V, A, D",
    "mean deviation V, A, D",
    "GiB",
)


def row_table(found: Sequence[Result]) -> str:
    """Return the rows as a Markdown table; each ratio is to the first one."""
    return _table(
        _COLUMNS,
        [
            (
                result.name,
                result.what,
                f"{result.per_s:.2f}",
                f"{result.real_time:.1f}",
                f"{result.ratio:.2f}",
                "" if math.isnan(result.of_floor) else f"{result.of_floor:.0%}",
                f"{result.padding:.0%}",
                _three(result.max_deviation),
                _three(result.mean_deviation),
                f"{result.memory_bytes / 2**30:.1f}",
            )
            for result in found
        ],
    )


def ccc_table(found: Sequence[Result]) -> str:
    """Return the change of the concordance on every test part; of the first row, the concordance itself."""
    first, *others = found
    columns = ("row", *(f"{part}: CCC of V, A, D" for part in first.ccc))
    lines = [(first.name, *(" / ".join(_or_none(value, ".3f") for value in ccc) for ccc in first.ccc.values()))]
    for result in others:
        changes = result.ccc_change.values()
        lines.append((result.name, *(" / ".join(_or_none(value, "+.4f") for value in change) for change in changes)))
    return _table(columns, lines)


def rate_line(rates: Mapping[str, float], operations: int, clips: int) -> str:
    """Return the measured rates, and the floor of the clips in float32."""
    told = ", ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in rates.items())
    floor_ms = 1000 * operations / clips / rates["float32"]
    return (
        f"matrix products, G operations/s: {told}; the clips need {operations / clips / 1e9:.1f} G each on average, "
        f"{floor_ms:.1f} ms at the rate of float32"
    )


def skipped_list(skipped: Mapping[str, str]) -> str:
    """Return which rows were not measured, and why."""
    return "\n".join(f"- {name}: not measured: {why}" for name, why in skipped.items())


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---", "---", *(["---:"] * (len(columns) - 2))], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _three(values: Vad) -> str:
    return " / ".join(f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.3f}" for value in values)


def _or_none(value: float, form: str) -> str:
    return "none" if math.isnan(value) else format(value, form)
