"""The paper's figures, and which of them are consistent with its own columns.

A figure is consistent if numbers that round to the printed columns give a result that rounds to the printed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from attune_training.config import DIMENSIONS

__all__ = ["Check", "Paper", "PaperRow", "PaperTable", "Storage", "TableName", "checks", "paper"]

TableName = Literal["table1", "table2"]

_COLUMN_HALF_UNIT = 0.00005
"""Half of the last printed digit of the tables' losses."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row as printed: test losses and PCC by dimension where given; `average` as stated, or None."""

    label: str
    average: float | None = None
    loss: dict[str, float] = field(default_factory=dict)
    pcc: dict[str, float] = field(default_factory=dict)

    @property
    def average_of_columns(self) -> float | None:
        """The mean of the three losses, where they are printed."""
        return sum(self.loss[name] for name in DIMENSIONS) / len(DIMENSIONS) if self.loss else None

    @property
    def best_average(self) -> float:
        """The average that the columns give, or the stated one where there are no columns."""
        computed = self.average_of_columns
        value = self.average if computed is None else computed
        assert value is not None  # every row has columns or an average
        return value


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table: its rows by name, in order."""

    title: str
    rows: dict[str, PaperRow]


@dataclass(frozen=True, slots=True)
class Reduction:
    """A stated reduction of the average loss from one row to another, in per cent."""

    section: str
    what: str
    before: str
    after: str
    percent: float


@dataclass(frozen=True, slots=True)
class Storage:
    """The paper's savings by adapters: trained parameters, and size of a checkpoint in megabytes."""

    section: str
    fewer_trained_percent: float
    full_mb: float
    checkpoint_mb: float


@dataclass(frozen=True, slots=True)
class Paper:
    """All figures."""

    tables: dict[TableName, PaperTable]
    reductions: tuple[Reduction, ...]
    storage: Storage

    def row(self, name: str) -> PaperRow:
        """Return a row of either table."""
        return next(table.rows[name] for table in self.tables.values() if name in table.rows)


@dataclass(frozen=True, slots=True)
class Check:
    """One stated figure and the value computed from the paper's columns; `unit` is " %" or empty."""

    what: str
    stated: float
    computed: float
    follows: bool
    unit: str
    remark: str = ""

    def __str__(self) -> str:
        decimals = _decimals(self.stated)
        stated = f"{self.stated:.{decimals}f}{self.unit}"
        if self.follows:
            return f"{self.what}: {stated} follows"
        return f"{self.what}: {stated} does not follow: {self.computed:.{decimals}f}{self.unit} instead{self.remark}"


@cache
def paper() -> Paper:
    """Return the paper's figures."""
    text = resources.files("attune_training.experiments").joinpath("paper.yaml").read_text(encoding="utf-8")
    return TypeAdapter(Paper).validate_python(yaml.safe_load(text))


def checks(figures: Paper) -> list[Check]:
    """Recompute every stated average and reduction from the columns."""
    rows = {name: row for table in figures.tables.values() for name, row in table.rows.items()}
    averages = [_average_check(row) for row in rows.values() if row.average is not None and row.loss]
    return [*averages, *(_reduction_check(item, rows) for item in figures.reductions)]


def _average_check(row: PaperRow) -> Check:
    assert row.average is not None
    computed = row.best_average
    follows = _meet(row.average, computed - _COLUMN_HALF_UNIT, computed + _COLUMN_HALF_UNIT)
    return Check(f"average loss of {row.label}", row.average, computed, follows, unit="")


def _reduction_check(item: Reduction, rows: Mapping[str, PaperRow]) -> Check:
    before, after = rows[item.before], rows[item.after]
    follows = _reduces(before.best_average, after.best_average, item.percent)
    remark = ""
    if not follows and after.average is not None and _reduces(before.best_average, after.average, item.percent):
        remark = f" (it is the reduction to the stated average, {after.average})"
    return Check(
        f"section {item.section}, {item.what} ({before.label} to {after.label})",
        item.percent,
        _reduction(before.best_average, after.best_average),
        follows,
        unit=" %",
        remark=remark,
    )


def _reduction(before: float, after: float) -> float:
    return 100 * (1 - after / before)


def _reduces(before: float, after: float, percent: float) -> bool:
    half = _COLUMN_HALF_UNIT
    return _meet(percent, _reduction(before - half, after + half), _reduction(before + half, after - half))


def _meet(stated: float, low: float, high: float) -> bool:
    """Return whether a number of `low` to `high` rounds to `stated`."""
    half = 0.5 * 10.0 ** -_decimals(stated)
    return low <= stated + half and stated - half <= high


def _decimals(value: float) -> int:
    exponent: Any = Decimal(str(value)).as_tuple().exponent
    return -exponent
