"""The reliability of a model: what labels are on average where it predicts a value, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from attune_training.calibration.fitting import Labelled, Line, apply_line, reliability

__all__ = ["draw_reliability"]

mpl.use("Agg")  # no display is needed

_DPI = 110


def draw_reliability(columns: Mapping[str, tuple[Line, Mapping[str, Labelled]]], target: Path) -> None:
    """Draw a panel for each dimension, a line for each corpus; dotted before calibration, whole after it.

    A point is an eighth of a corpus's predictions, its bar the standard error of the mean label.
    """
    figure = Figure(figsize=(4.6 * len(columns), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(columns)))
    for (dimension, (line, corpora)), axes in zip(columns.items(), panels, strict=True):
        axes.plot([1, 5], [1, 5], color="0.7", linewidth=1)
        for number, (name, item) in enumerate(corpora.items()):
            colour = f"C{number}"
            before, labels, _ = reliability(item)
            axes.plot(before, labels, ":", color=colour, linewidth=1)
            means, labels, errors = reliability(Labelled(apply_line(line, item.predicted), item.target))
            axes.errorbar(means, labels, yerr=errors, marker=".", color=colour, label=name, linewidth=1)
        axes.set(title=dimension, xlabel="predicted", ylabel="mean label", xlim=(1, 5), ylim=(1, 5), aspect="equal")
        axes.legend(fontsize="small")
    figure.savefig(target, dpi=_DPI)
