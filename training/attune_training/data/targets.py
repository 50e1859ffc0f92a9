"""From what a corpus says to valence, arousal and dominance on 1..5: ratings, anchors of acted categories, strength.

A dimension that nothing is known of is NaN all the way, and `attune_training.data.rows.UNLABELLED` in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from attune_training.config import MAX_VAD, MIN_VAD

__all__ = ["ACTED_VAD", "VAD", "away_from", "mean_vad", "rescaled"]

VAD: TypeAlias = tuple[float, float, float]
"""Valence, arousal and dominance on 1..5; NaN where one is not known."""

ACTED_VAD: dict[str, VAD] = {
    "neutral": (3.0, 2.5, 3.0),
    "calm": (3.6, 2.0, 3.2),
    "happy": (4.3, 3.7, 3.5),
    "sad": (1.9, 2.2, 2.2),
    "angry": (1.7, 4.2, 4.0),
    "fearful": (1.9, 3.8, 2.1),
    "disgust": (2.0, 3.1, 3.2),
    "surprised": (3.4, 4.0, 3.0),
}
"""The anchors of the categories that actors act (RAVDESS, CREMA-D). They are this project's own choice."""


def rescaled(rating: float, low: float, high: float) -> float:
    """Return a rating on `low..high` on 1..5.

    Raises:
        ValueError: the rating is not on that scale.
    """
    if not low <= rating <= high:
        raise ValueError(f"{rating:g} is outside {low:g}..{high:g}")
    return MIN_VAD + (rating - low) / (high - low) * (MAX_VAD - MIN_VAD)


def away_from(origin: VAD, point: VAD, scale: float) -> VAD:
    """Return `origin` plus `scale` times the way to `point`, clipped to 1..5; NaN stays NaN."""
    valence, arousal, dominance = (
        _clipped(start + scale * (end - start)) for start, end in zip(origin, point, strict=True)
    )
    return valence, arousal, dominance


def mean_vad(weighted: Iterable[tuple[VAD, float]]) -> VAD:
    """Return the weighted mean of points, each dimension over those that know it; NaN where none does."""
    points = list(weighted)
    valence, arousal, dominance = (_mean([(point[column], weight) for point, weight in points]) for column in range(3))
    return valence, arousal, dominance


def _mean(weighted: Iterable[tuple[float, float]]) -> float:
    known = [(value, weight) for value, weight in weighted if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


def _clipped(value: float) -> float:
    return value if math.isnan(value) else min(MAX_VAD, max(MIN_VAD, value))
