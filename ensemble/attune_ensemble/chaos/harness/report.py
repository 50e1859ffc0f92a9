"""The table of the rows, what failed in words, and one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from attune_ensemble.chaos.harness.run import Result

__all__ = ["HEADING", "details", "json_line", "table_line"]

HEADING = (
    "| row | what was done | requests | answered | clean errors | lost | hung | recovery s | left behind "
    "| s | passed |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
)


def table_line(result: Result) -> str:
    """One row of the Markdown table under `HEADING`."""
    recovery = "" if result.recovery_s is None else f"{result.recovery_s:.1f}"
    cells = (
        result.row,
        result.what,
        result.requests,
        result.answered,
        result.errors,
        result.lost,
        result.hung,
        recovery,
        len(result.left) or "nothing",
        f"{result.seconds:.0f}",
        verdict(result),
    )
    return f"| {' | '.join(map(str, cells))} |"


def verdict(result: Result) -> str:
    """The last column."""
    if result.skipped:
        return f"skipped: {result.skipped}"
    return "yes" if result.passed else "NO"


def details(result: Result) -> list[str]:
    """What failed, what was left behind and what is worth reading, a line each."""
    return [
        *(f"{result.row}: failed: {failure}" for failure in result.failures),
        *(f"{result.row}: left behind: {left}" for left in result.left),
        *(f"{result.row}: {note}" for note in result.notes),
    ]


def json_line(results: Sequence[Result], hardware: str) -> str:
    """Everything as one line of JSON."""
    return json.dumps(
        {
            "hardware": hardware,
            "passed": all(result.passed for result in results),
            "rows": [asdict(result) for result in results],
        }
    )
