"""Fit the map of a dimension so that predictions agree with labels: raw outputs times a scale, plus an offset.

Letters: n utterances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize
from scipy.special import expit, logit

from attune_training.config import MAX_VAD, MIN_VAD
from attune_training.metrics import Agreement, agreement

__all__ = ["Labelled", "Line", "apply_line", "fit_line", "reliability", "spread", "summary"]

Array = npt.NDArray[np.float64]

_EDGE = 1e-6  # of the sigmoid: predictions at the very ends of the scale have no finite raw output
_SCALES = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Predictions and labels of one dimension of one corpus, each [n] on 1..5; a label may be NaN."""

    predicted: Array
    target: Array

    def known(self) -> Labelled:
        """Return those with a label."""
        rows = ~np.isnan(self.target)
        return Labelled(self.predicted[rows], self.target[rows])


@dataclass(frozen=True, slots=True)
class Line:
    """The map: raw output times `scale`, above 0, plus `offset`."""

    scale: float = 1.0
    offset: float = 0.0


def apply_line(line: Line, predicted: npt.ArrayLike) -> Array:
    """Return predictions on 1..5 after the map."""
    share = (np.asarray(predicted, float) - MIN_VAD) / (MAX_VAD - MIN_VAD)
    raw = logit(np.clip(share, _EDGE, 1.0 - _EDGE))
    mapped: Array = MIN_VAD + (MAX_VAD - MIN_VAD) * expit(line.scale * raw + line.offset)
    return mapped


def fit_line(corpora: Mapping[str, Labelled]) -> Line:
    """Return the map with the highest mean CCC over the corpora that have labels; none of them: no change.

    At a given correlation CCC is highest where means and spreads are equal, so that is what is fitted.
    """
    known = [item.known() for item in corpora.values()]
    known = [item for item in known if len(item.target) > 1]
    if not known:
        return Line()

    def cost(parameters: Array) -> float:
        line = Line(float(np.exp(parameters[0])), float(parameters[1]))
        return -float(np.mean([agreement(apply_line(line, item.predicted), item.target).ccc for item in known]))

    bounds = [tuple(np.log(_SCALES)), (-3.0, 3.0)]
    found = scipy.optimize.minimize(cost, [0.0, 0.0], method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-4})
    return Line(float(np.exp(found.x[0])), float(found.x[1]))


def spread(item: Labelled) -> float:
    """Return the standard deviation of the predictions over that of the labels."""
    known = item.known()
    return float(known.predicted.std() / max(known.target.std(), 1e-9))


def reliability(item: Labelled, bins: int = 8) -> tuple[Array, Array, Array]:
    """Return, for bins of equally many predictions, their mean, the mean label, and its standard error."""
    known = item.known()
    parts = [part for part in np.array_split(np.argsort(known.predicted), bins) if len(part)]
    means = np.array([known.predicted[part].mean() for part in parts])
    labels = np.array([known.target[part].mean() for part in parts])
    errors = np.array([known.target[part].std() / np.sqrt(len(part)) for part in parts])
    return means, labels, errors


def summary(item: Labelled) -> tuple[Agreement, float]:
    """Return agreement and spread of the labelled ones."""
    return agreement(item.predicted, item.target), spread(item)
