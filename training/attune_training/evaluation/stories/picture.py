"""The confusion of octants as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attune_training.evaluation.stories.measures import OCTANTS, StoryScores

__all__ = ["draw_confusion"]

_DPI = 110
_INK, _PAPER = "#222222", "#FFFFFF"
_DARK = 0.5  # share of a row from which on the numbers are written in white


def draw_confusion(scores: StoryScores, path: Path) -> None:
    """Write a PNG file: of the stories of each octant (row), how many got an emotion of which octant (column)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, for it is slow to import
    from matplotlib.figure import Figure

    counts = np.array(scores.confusion)  # [8, 8]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6.6, 6.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = _PAPER if shares[row, column] > _DARK else _INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(OCTANTS)), OCTANTS)
    axes.set_yticks(range(len(OCTANTS)), OCTANTS)
    axes.set(xlabel="octant of the emotion heard", ylabel="octant of the story")
    right = f"{scores.octant.right} of {scores.count} stories in the right octant ({scores.octant.share:.0%})"
    axes.set_title(f"{right}\nvalence, arousal, dominance: high (H) or low (L)", fontsize=10, color=_INK)
    axes.spines[:].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})
