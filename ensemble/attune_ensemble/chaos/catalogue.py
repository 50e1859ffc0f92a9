"""Every row of `attune chaos`, in the order in which they run."""

from __future__ import annotations

from attune_ensemble.chaos.harness.case import Row
from attune_ensemble.chaos.rows import (
    admission,
    bad_connections,
    bad_input,
    deaths,
    lasting,
    listeners,
    reports,
    starting,
    stopping,
    surroundings,
)

__all__ = ["MODULES", "ROWS"]

MODULES = (deaths, admission, bad_input, bad_connections, listeners, reports, starting, stopping, surroundings, lasting)
"""Where the rows are; each module has them in its `ROWS`."""

ROWS: tuple[Row, ...] = tuple(row for module in MODULES for row in module.ROWS)
