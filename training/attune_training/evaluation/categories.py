"""The category that a voice was asked for, told by the nearest anchor of the acted categories.

Letters: n utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attune_training.config import DIMENSIONS
from attune_training.data.targets import ACTED_VAD
from attune_training.data.utterance import Utterance
from attune_training.evaluation.predictions import Predictions

__all__ = ["CategoryResult", "tell_categories"]


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """`right` of `count` utterances got the category that was asked for; `recall` is that of each category.

    `listeners` is the mean share of listeners who heard that category; None where nobody was asked.
    """

    count: int
    right: int
    recall: dict[str, float]
    listeners: float | None

    @property
    def share(self) -> float:
        """Share of utterances with the right category."""
        return self.right / self.count


def tell_categories(predictions: Predictions) -> CategoryResult:
    """Give every utterance the category, of those in the corpus, whose anchor is nearest to its prediction.

    Raises:
        ValueError: a dimension is not predicted, or a category is none of the acted ones.
    """
    missing = [name for name in DIMENSIONS if name not in predictions.names]
    if missing:
        raise ValueError(f"to tell categories a model of {', '.join(DIMENSIONS)} is needed; {', '.join(missing)} lacks")
    asked = [item.category for item in predictions.utterances]
    names = sorted(set(asked))
    if unknown := [name for name in names if name not in ACTED_VAD]:
        raise ValueError(f"{', '.join(map(repr, unknown))}: the categories with an anchor are {', '.join(ACTED_VAD)}")
    anchors = np.array([ACTED_VAD[name] for name in names])
    vad = np.stack([predictions.column(name) for name in DIMENSIONS], axis=1)
    nearest = np.linalg.norm(vad[:, None] - anchors[None], axis=2).argmin(axis=1)
    told = np.array(names)[nearest]
    is_right = told == np.array(asked)
    recall = {name: float(is_right[np.array(asked) == name].mean()) for name in names}
    return CategoryResult(len(asked), int(is_right.sum()), recall, _listeners(predictions.utterances))


def _listeners(utterances: Sequence[Utterance]) -> float | None:
    shares = [item.agreement for item in utterances if item.agreement is not None]
    return float(np.mean(shares)) if shares else None
