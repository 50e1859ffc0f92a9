"""Recognition of a lexicon's rating scale, by one rule, or its choice by the user.

The rule: exactly one of the known scales must contain every rating and be used to its ends, that is, in each of the
three dimensions the ratings come within a fifth of its width of both ends. So half of -1..1 is not mistaken for 0..1,
nor are ratings below 5 on 1..9 for 1..5, unless all three dimensions use only that part of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attune_training.config import DIMENSIONS

__all__ = ["KNOWN_SCALES", "Array", "Scale", "UnknownScaleError", "recognise_scale"]

Array = npt.NDArray[np.float64]

KNOWN_SCALES = ((0.0, 1.0), (-1.0, 1.0), (1.0, 5.0), (1.0, 9.0))
"""NRC VAD v1, NRC VAD v2.1, Attune's own, and the Glasgow Norms and most others of psychology."""

END_SHARE = 0.2
"""Largest distance of the extreme ratings from both ends of a scale, in widths of the scale."""


class UnknownScaleError(ValueError):
    """The scale of the ratings is ambiguous or unknown; the message states their range."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The ends of a rating scale, and how it was determined."""

    low: float
    high: float
    evidence: str

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


def recognise_scale(ratings: Array, is_nrc_v2: bool = False) -> Scale:
    """Return the scale of ratings [N, 3] by the rule above; `is_nrc_v2`: the table has the layout of NRC VAD v2.1.

    Raises:
        UnknownScaleError: no known scale fits, or more than one, or the layout contradicts the ratings.
    """
    fitting = [ends for ends in KNOWN_SCALES if _is_used_to_its_ends(ratings, *ends)]
    if len(fitting) != 1:
        known = ", ".join(f"{low:g}..{high:g}" for low, high in KNOWN_SCALES)
        raise UnknownScaleError(f"{_seen(ratings)}; this fits {'none' if not fitting else 'several'} of {known}")
    low, high = fitting[0]
    if is_nrc_v2 and low == 0.0:
        raise UnknownScaleError(f"{_seen(ratings)}; the layout is that of NRC VAD v2.1 on -1..1, the ratings fit 0..1")
    return Scale(low, high, f"recognised: {_seen(ratings)}, near both ends of {low:g}..{high:g} in every dimension")


def _is_used_to_its_ends(ratings: Array, low: float, high: float) -> bool:
    minimum, maximum = ratings.min(0), ratings.max(0)  # [3]
    margin = END_SHARE * (high - low)
    inside = (minimum >= low) & (maximum <= high)
    near_ends = (minimum <= low + margin) & (maximum >= high - margin)
    return bool((inside & near_ends).all())


def _seen(ratings: Array) -> str:
    ends = zip(DIMENSIONS, ratings.min(0), ratings.max(0), strict=True)
    return ", ".join(f"{name} {low:g}..{high:g}" for name, low, high in ends)
