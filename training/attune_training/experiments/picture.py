"""A finished table as a plot: losses and PCC of every row on every split, with the paper's figures beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attune_training.config import DIMENSIONS
from attune_training.evaluation.report import Interval
from attune_training.experiments.paper import PaperRow, paper
from attune_training.experiments.results import TableResult
from attune_training.experiments.runs import Cell, Failed

__all__ = ["draw_table"]

mpl.use("Agg")  # no display is needed

_DPI = 110
_SPREAD = 0.5
"""Share of a row's height over which its splits are spread."""

Point = tuple[float, Interval | None]


def draw_table(result: TableResult, target: Path) -> None:
    """Draw one panel for each measure; the last of the eight holds the legend."""
    rows = paper().tables[result.table].rows
    shown = [rows[name] for name in result.cells]
    figure = Figure(figsize=(15, 1.5 + 2 * 0.55 * (len(shown) + 2)), layout="constrained")
    panels = figure.subplots(2, len(DIMENSIONS) + 1, sharey=True)
    for axes, (measure, dimension) in zip(
        (*panels[0], *panels[1][:-1]),
        [*(("loss", name) for name in (*DIMENSIONS, "average")), *(("pcc", name) for name in DIMENSIONS)],
        strict=True,
    ):
        _draw_panel(axes, result, shown, measure, dimension)
    for left in panels[:, 0]:
        left.set_yticks(range(len(shown)), [row.label for row in shown])
    panels[0, 0].set_ylim(len(shown) - 0.5, -0.5)
    legend = panels[1, -1]
    legend.axis("off")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center", frameon=False, fontsize="large")
    figure.suptitle(
        "\n".join([f"{paper().tables[result.table].title}, on {result.subject.corpus.name}", *result.notes])
    )
    figure.savefig(target, dpi=_DPI)


def _draw_panel(axes: Any, result: TableResult, shown: list[PaperRow], measure: str, dimension: str) -> None:
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(result.splits) + 1)
    printed = [_printed(row, measure, dimension) for row in shown]
    axes.scatter(
        [np.nan if value is None else value for value in printed],
        np.arange(len(shown)) + offsets[0],
        marker="D",
        facecolors="none",
        edgecolors="black",
        label="the paper (averages from its\ncolumns, where it has any)",
    )
    for column, split in enumerate(result.splits):
        points = [_point(cells[column], measure, dimension) for cells in result.cells.values()]
        _draw_points(axes, points, np.arange(len(shown)) + offsets[column + 1], f"C{column}", split.label)
    for height, cells in enumerate(result.cells.values()):
        if all(isinstance(cell, Failed) for cell in cells):
            axes.text(
                0.5, height, "failed", transform=axes.get_yaxis_transform(), ha="center", va="center", color="0.5"
            )
    axes.set_title(f"{dimension} {'loss' if measure == 'loss' else 'PCC'}")
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))  # ends would touch the next panel's
    axes.grid(axis="x", alpha=0.3)
    for boundary in range(len(shown) - 1):
        axes.axhline(boundary + 0.5, color="0.9", linewidth=1)


def _draw_points(axes: Any, points: list[Point], heights: Any, colour: str, label: str) -> None:
    values = np.array([value for value, _ in points])
    reach = np.array(
        [[0.0, 0.0] if spread is None else [value - spread.low, spread.high - value] for value, spread in points]
    )
    # A bootstrap interval may, rarely, lie beside its value.
    axes.errorbar(values, heights, xerr=reach.clip(min=0.0).T, fmt="o", capsize=3, color=colour, label=label)


def _printed(row: PaperRow, measure: str, dimension: str) -> float | None:
    if measure == "pcc":
        return row.pcc.get(dimension)
    return row.best_average if dimension == "average" else row.loss.get(dimension)


def _point(cell: Cell, measure: str, dimension: str) -> Point:
    """Return the value and its interval; not a number where the row failed."""
    if isinstance(cell, Failed):
        return float("nan"), None
    if dimension == "average":
        return cell.mean_loss, None
    item = cell.dimensions[dimension]
    return (item.pcc, item.pcc_interval) if measure == "pcc" else (item.loss, item.loss_interval)
