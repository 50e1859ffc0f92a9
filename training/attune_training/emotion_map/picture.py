"""A plot of the map: the 40 emotions in VAD space, with the lexicon behind them.

Two panels show valence and arousal, one for high and one for low dominance, so that each quarter of a panel is an
octant with its five emotions; a third panel shows dominance. The colours are those of Okabe and Ito (2008), which
are distinguishable with any common colour vision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attune_training.config import MAX_VAD, MIN_VAD, NEUTRAL_VAD
from attune_training.emotion_map.clusters import EmotionMap, octants_of
from attune_training.emotion_map.lexicon import Lexicon
from attune_training.emotion_map.scale import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patheffects import AbstractPathEffect
    from matplotlib.transforms import Bbox

__all__ = ["draw_emotion_map"]

OCTANT_COLOURS = {
    "HHH": "#E69F00",
    "HHL": "#F0E442",
    "HLH": "#009E73",
    "HLL": "#56B4E9",
    "LHH": "#D55E00",
    "LHL": "#CC79A7",
    "LLH": "#0072B2",
    "LLL": "#4D4D4D",
}
_VALENCE, _AROUSAL, _DOMINANCE = 0, 1, 2
_MAX_TERMS = 8_000  # more dots would only overlap
_INK, _PALE = "#222222", "#8A8A8A"
_PLACES = tuple(
    (dx, dy, align)
    for dx, align in ((9, "left"), (-9, "right"), (0, "center"))
    for dy in (0, 9, -9, 14, -14, 20, -20)
    if dx or abs(dy) > 9
)
"""Candidate positions of a label relative to its point: x and y offset in points, alignment."""


def draw_emotion_map(emotion_map: EmotionMap, lexicon: Lexicon, path: Path) -> None:
    """Write the plot as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.7), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    high, low, whole = figure.subplots(1, 3, width_ratios=(5, 5, 3.4))
    emotions = emotion_map.denormalise(emotion_map.centroids)  # [K, 3]
    terms = _sample(lexicon.vad)
    is_high = emotions[:, _DOMINANCE] > NEUTRAL_VAD
    halves = ((high, "high dominance", is_high, True), (low, "low dominance", ~is_high, False))
    for axes, title, shown, above in halves:
        behind = terms[(terms[:, _DOMINANCE] > NEUTRAL_VAD) == above]
        _panel(axes, title, emotions[shown], behind, (_VALENCE, _AROUSAL))
    _panel(whole, "all, by dominance", emotions, terms, (_VALENCE, _DOMINANCE))
    _legend(whole)
    figure.draw_without_rendering()  # computes the layout, so that label widths are known
    for axes, _, shown, _ in halves:
        labels = [label for label, here in zip(emotion_map.labels, shown, strict=True) if here]
        _name(axes, emotions[shown][:, [_VALENCE, _AROUSAL]], labels)
    figure.savefig(path, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})


def _sample(vad: Array) -> Array:
    if len(vad) <= _MAX_TERMS:
        return vad
    return vad[np.random.default_rng(0).choice(len(vad), _MAX_TERMS, replace=False)]


def _panel(axes: Axes, title: str, emotions: Array, terms: Array, dimensions: tuple[int, int]) -> None:
    """Draw terms as pale dots and emotions as large ones, both in the colour of their octant."""
    across, up = dimensions
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_anchor("N")
    for points, size, alpha, edge in ((terms, 5, 0.25, "none"), (emotions, 95, 1.0, "white")):
        colours = [OCTANT_COLOURS[octant] for octant in octants_of(points)]
        axes.scatter(points[:, across], points[:, up], s=size, c=colours, alpha=alpha, edgecolors=edge, linewidths=1.2)
    names = ("valence", "arousal", "dominance")
    axes.set(xlabel=names[across], ylabel=names[up], xlim=(MIN_VAD, MAX_VAD), ylim=(MIN_VAD, MAX_VAD))
    axes.set_aspect("equal")
    axes.set_xticks(range(1, 6))
    axes.set_yticks(range(1, 6))
    axes.axhline(NEUTRAL_VAD, color=_PALE, linewidth=0.8, zorder=0)
    axes.axvline(NEUTRAL_VAD, color=_PALE, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    for octant, colour in OCTANT_COLOURS.items():
        axes.scatter([], [], s=60, c=colour, label=octant)
    axes.legend(
        title="octant: valence, arousal, dominance\nhigh (H) or low (L)",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=4,
        frameon=False,
        handletextpad=0.1,
        columnspacing=0.8,
    )


def _name(axes: Axes, points: Array, labels: list[str]) -> None:
    """Place each label beside its point, where it overlaps least with the other points and labels."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in pixels]
    halo: list[AbstractPathEffect] = [withStroke(linewidth=3, foreground="white")]
    frame = axes.get_window_extent()
    for (x, y), label in zip(points, labels, strict=True):
        text = axes.annotate(label, (x, y), xytext=(0, 0), textcoords="offset points", va="center", fontsize=11)
        text.set(color=_INK, path_effects=halo)
        costs = []
        for across, up, side in _PLACES:
            text.set(position=(across, up), horizontalalignment=side)
            box = text.get_window_extent()
            outside = box.width * box.height - _area(box, frame)
            costs.append(_overlap(box, taken) + outside + np.hypot(across, up))
        across, up, side = _PLACES[int(np.argmin(costs))]
        text.set(position=(across, up), horizontalalignment=side)
        taken.append(text.get_window_extent())


def _overlap(box: Bbox, others: list[Bbox]) -> float:
    """Return the area of `box` that others overlap, in square pixels."""
    return sum(_area(box, other) for other in others)


def _area(one: Bbox, other: Bbox) -> float:
    from matplotlib.transforms import Bbox

    common = Bbox.intersection(one, other)
    return common.width * common.height if common else 0.0
