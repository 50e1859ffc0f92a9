"""Pairwise order checks: of two utterances, does the one that should score higher do so?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attune_training.config import DIMENSIONS
from attune_training.data.utterance import Utterance
from attune_training.evaluation.predictions import Predictions

__all__ = ["PairCheck", "PairResult", "category_pairs", "check_pairs", "parse_pair_check", "quintile_pairs"]

Pairs = list[tuple[int, int]]
"""Indices of utterances: the first should score higher than the second."""


@dataclass(frozen=True, slots=True)
class PairCheck:
    """`arousal:angry/calm`: one speaker, one sentence, two ways to speak. `valence:quintiles`: words by label."""

    dimension: str
    higher: str = ""
    lower: str = ""

    @property
    def label(self) -> str:
        """Description of the check."""
        if self.higher:
            return f"{self.dimension}: {self.higher} above {self.lower}, same speaker, same words"
        return f"{self.dimension}: a sentence of the top quintile above one of the bottom quintile, same voice"


@dataclass(frozen=True, slots=True)
class PairResult:
    """How many of the pairs came out in the right order."""

    check: str
    pairs: int
    right: int

    @property
    def share(self) -> float:
        """Share of pairs in the right order."""
        return self.right / self.pairs


def parse_pair_check(text: str) -> PairCheck:
    """Read `arousal:angry/calm` or `valence:quintiles`.

    Raises:
        ValueError: it is neither.
    """
    dimension, _, rest = text.partition(":")
    higher, _, lower = rest.partition("/")
    if dimension in DIMENSIONS and rest == "quintiles":
        return PairCheck(dimension)
    if dimension in DIMENSIONS and higher and lower:
        return PairCheck(dimension, higher, lower)
    raise ValueError(f"{text!r} is no check of pairs: write arousal:angry/calm, or valence:quintiles")


def category_pairs(utterances: Sequence[Utterance], higher: str, lower: str) -> Pairs:
    """Return every pair of one speaker and one sentence spoken in the two categories."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, item in enumerate(utterances):
        groups[item.speaker, item.transcript][item.category].append(index)
    return [(up, down) for group in groups.values() for up in group[higher] for down in group[lower]]


def quintile_pairs(utterances: Sequence[Utterance], dimension: str, count: int = 100, seed: int = 0) -> Pairs:
    """Draw pairs of one voice: one of the top fifth by label, one of the bottom fifth, no utterance twice.

    Utterances without a label of the dimension are in neither.
    """
    values = np.array([item.vad()[DIMENSIONS.index(dimension)] for item in utterances])
    low, high = np.nanquantile(values, [0.2, 0.8])
    random = np.random.default_rng(seed)
    pairs: Pairs = []
    for speaker in sorted({item.speaker for item in utterances}):
        own = np.array([item.speaker == speaker for item in utterances])
        top = random.permutation(np.flatnonzero(own & (values >= high)))
        bottom = random.permutation(np.flatnonzero(own & (values <= low)))
        pairs += [(int(up), int(down)) for up, down in zip(top, bottom, strict=False)]
    chosen = random.permutation(len(pairs))[:count]
    return [pairs[index] for index in chosen]


def check_pairs(predictions: Predictions, check: PairCheck) -> PairResult:
    """Count the pairs of the check that the predictions put in the right order.

    Raises:
        ValueError: the model does not predict the dimension, or the corpus has no such pair.
    """
    if check.dimension not in predictions.names:
        raise ValueError(f"the model predicts {', '.join(predictions.names)}, not {check.dimension}")
    utterances = predictions.utterances
    if check.higher:
        pairs = category_pairs(utterances, check.higher, check.lower)
    else:
        pairs = quintile_pairs(utterances, check.dimension)
    if not pairs:
        raise ValueError(f"the corpus has no pair for {check.label!r}")
    values = predictions.column(check.dimension)
    return PairResult(check.label, len(pairs), sum(bool(values[up] > values[down]) for up, down in pairs))
