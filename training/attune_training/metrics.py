"""Agreement of predictions with targets: Pearson's r, Lin's concordance, and the root mean squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """PCC and CCC in -1..1, RMSE in points of the scale, and the number of samples."""

    pcc: float
    ccc: float
    rmse: float
    count: int


def agreement(predicted: npt.ArrayLike, target: npt.ArrayLike) -> Agreement:
    """Compare predicted [n] with target [n]; samples whose target is NaN have no label, and do not count.

    CCC is Lin's (1989): 2 cov / (var + var + (difference of means)^2). PCC and CCC of a constant are 0.

    Raises:
        ValueError: the lengths differ, or there are fewer than two samples with a label.
    """
    x, y = np.asarray(predicted, float), np.asarray(target, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two equally long vectors of two or more numbers, got {x.shape} and {y.shape}")
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if x.size < 2:
        raise ValueError(f"expected two equally long vectors of two or more numbers with labels, got {x.size}")
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    spread = float(x.std() * y.std())
    concordance = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    return Agreement(
        pcc=covariance / spread if spread else 0.0,
        ccc=2 * covariance / concordance if concordance else 0.0,
        rmse=float(np.sqrt(np.mean((x - y) ** 2))),
        count=x.size,
    )
