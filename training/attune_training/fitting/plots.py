"""Plots of a run: the training curves, and predicted against true."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from attune_training.evaluation.predictions import Predictions
from attune_training.metrics import agreement

__all__ = ["draw_curves", "draw_predictions"]

mpl.use("Agg")  # no display is needed

_DPI = 110


def read_curves(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each logged value by epoch; after a restart the later value counts."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("epoch", "step"):
                        curves.setdefault(name, {})[int(row["epoch"])] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def draw_curves(logs: Path, target: Path) -> None:
    """Draw the training loss beside the validation PCC of every dimension, from Lightning's CSV logs."""
    curves = read_curves(logs)
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    for axes, title, names in (
        (loss_axes, "training loss", ["loss"]),
        (score_axes, "validation PCC", sorted(name for name in curves if name.endswith("_pcc"))),
    ):
        for name in names:
            epochs, values = zip(*curves[name], strict=True)
            axes.plot([epoch + 1 for epoch in epochs], values, marker=".", label=name.removesuffix("_pcc"))
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    score_axes.legend(fontsize="small")
    figure.savefig(target, dpi=_DPI)


def draw_predictions(predictions: Predictions, target: Path, title: str) -> None:
    """Draw predicted against true, one panel for each dimension; utterances without a label are not drawn."""
    figure = Figure(figsize=(4.2 * len(predictions.names), 4.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(predictions.names)))
    for column, (name, axes) in enumerate(zip(predictions.names, panels, strict=True)):
        true, predicted = predictions.target[:, column], predictions.predicted[:, column]
        axes.plot([1, 5], [1, 5], color="0.7", linewidth=1)
        axes.scatter(true, predicted, s=8, alpha=0.4)
        has_labels = np.count_nonzero(~np.isnan(true)) > 1
        found = f"PCC {agreement(predicted, true).pcc:.3f}" if has_labels else "no labels"
        axes.set(title=f"{name}: {found}", xlabel="true", ylabel="predicted")
        axes.set(xlim=(1, 5), ylim=(1, 5), aspect="equal")
    figure.suptitle(f"{title} (n = {len(predictions.target)})")
    figure.savefig(target, dpi=_DPI)
