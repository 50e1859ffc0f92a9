"""How well the emotions that were heard in stories are the right ones.

Letters: n stories, K emotions. An octant is three letters, H above 3 and L otherwise, for valence, arousal, dominance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.emotion_map.anchors import Anchors
from attune_training.emotion_map.clusters import octants_of
from attune_training.evaluation.report import Interval
from attune_training.evaluation.stories.families import TOLD_APART, family_of
from attune_training.evaluation.stories.reading import Negation, Story
from attune_training.metrics import Agreement, agreement

__all__ = [
    "OCTANTS",
    "Answers",
    "NegationScores",
    "Share",
    "StoryScores",
    "ToldApart",
    "calibration_error",
    "differences",
    "main_measures",
    "measure",
    "measure_negations",
    "to_json",
]

Array = npt.NDArray[np.float64]

OCTANTS = ("HHH", "HHL", "HLH", "HLL", "LHH", "LHL", "LLH", "LLL")
"""In the order of the knowledge base."""

CALIBRATION_BINS = 10
_Z = 1.959964  # of a 95 % interval
_VALENCE, _AROUSAL = 0, 1


@dataclass(frozen=True, slots=True)
class Answers:
    """What was said of n texts: VAD [n, 3] on 1..5, probabilities [n, K], and the index [n] of the emotion chosen.

    The chosen emotion need not be the most probable one: a rule may have come between.
    """

    vad: Array
    probabilities: Array
    chosen: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.vad)
        if self.vad.shape != (count, 3) or self.probabilities.ndim != 2 or self.chosen.shape != (count,):
            raise ValueError(
                f"expected VAD [n, 3], probabilities [n, K] and choices [n], got "
                f"{self.vad.shape}, {self.probabilities.shape} and {self.chosen.shape}"
            )
        if len(self.probabilities) != count or not np.allclose(self.probabilities.sum(axis=1), 1.0, atol=1e-3):
            raise ValueError("expected a row of probabilities for every text, each with the sum 1")
        if not np.isfinite(self.vad).all():
            raise ValueError("expected finite VAD")

    @classmethod
    def most_probable(cls, vad: npt.ArrayLike, probabilities: npt.ArrayLike) -> Answers:
        """Return the answers in which the most probable emotion is chosen."""
        table = np.asarray(probabilities, np.float64)
        return cls(np.asarray(vad, np.float64), table, table.argmax(axis=1))


@dataclass(frozen=True, slots=True)
class Share:
    """`right` of `count`, with Wilson's 95 % interval (1927) of the share."""

    right: int
    count: int
    share: float
    interval: Interval

    @classmethod
    def of(cls, hits: npt.ArrayLike) -> Share:
        """Return the share of true values [n]; n is at least 1."""
        values = np.asarray(hits, bool)
        right, count = int(values.sum()), len(values)
        share, weight = right / count, _Z**2 / count
        middle = (share + weight / 2) / (1 + weight)
        reach = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
        return cls(right, count, share, Interval(max(0.0, middle - reach), min(1.0, middle + reach)))


@dataclass(frozen=True, slots=True)
class ToldApart:
    """Fear, sadness and anger by the nearest anchor of these families: recall of each, and their mean."""

    balanced_accuracy: float
    recall: dict[str, float]
    count: int


@dataclass(frozen=True, slots=True)
class StoryScores:
    """All that is measured on n stories.

    `emotion`, `family` and `octant` ask about the chosen emotion, `vad_octant` and `valence_side` about the
    predicted VAD against the anchor of the story's emotion. `entropy` is that of the chosen emotions, in bits; K
    emotions chosen equally often have log2 K. `told_apart` is None where the stories lack one of the families.
    `emotion_calibration` and `octant_calibration` are expected calibration errors: of the chosen emotion's
    probability, and of the summed probabilities of its octant. `dimensions` compare VAD with the anchors, `spread`
    is the standard deviation of the predictions over that of the anchors. `confusion` counts the stories of an
    octant (row) by the octant chosen (column), both in the order of `OCTANTS`.
    """

    count: int
    emotion: Share
    family: Share
    octant: Share
    vad_octant: Share
    valence_side: Share
    used: int
    entropy: float
    most_frequent: str
    most_frequent_share: float
    told_apart: ToldApart | None
    emotion_calibration: float
    octant_calibration: float
    dimensions: dict[str, Agreement]
    spread: dict[str, float]
    chosen: dict[str, int]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class NegationScores:
    """Share of sentences on the right side of 3.

    `turned`: the word by itself lies on the other side than the sentence; `kept`: on the same. None where there is
    no such sentence.
    """

    valence: Share
    turned: Share | None
    kept: Share | None
    arousal: Share | None


def measure(stories: Sequence[Story], answers: Answers, anchors: Anchors) -> StoryScores:
    """Compare what was heard in stories with what is right.

    Raises:
        ValueError: there are fewer than two stories, or the answers are not those of these stories and emotions.
    """
    if len(stories) < 2:
        raise ValueError("two or more stories are needed")
    _check_fit(len(stories), answers, anchors)
    true = np.array([anchors.labels.index(story.emotion) for story in stories])
    octants = np.array(octants_of(anchors.vad))
    families = np.array([family_of(label) for label in anchors.labels])
    chosen_is_right = answers.chosen == true
    octant_is_right = octants[answers.chosen] == octants[true]
    counts = Counter(anchors.labels[index] for index in answers.chosen)
    [(most_frequent, most)] = counts.most_common(1)
    return StoryScores(
        count=len(stories),
        emotion=Share.of(chosen_is_right),
        family=Share.of(families[answers.chosen] == families[true]),
        octant=Share.of(octant_is_right),
        vad_octant=Share.of(np.array(octants_of(answers.vad)) == octants[true]),
        valence_side=Share.of(_is_high(answers.vad, _VALENCE) == _is_high(anchors.vad[true], _VALENCE)),
        used=len(counts),
        entropy=_entropy(list(counts.values())),
        most_frequent=most_frequent,
        most_frequent_share=most / len(stories),
        told_apart=_told_apart(families[true], answers.vad, anchors, families),
        emotion_calibration=calibration_error(_chosen_probability(answers), chosen_is_right),
        octant_calibration=calibration_error(_octant_probability(answers, octants), octant_is_right),
        dimensions={
            name: agreement(answers.vad[:, column], anchors.vad[true, column]) for column, name in enumerate(DIMENSIONS)
        },
        spread=_spread(answers.vad, anchors.vad[true]),
        chosen=dict(counts.most_common()),
        confusion=_confusion(octants[true], octants[answers.chosen]),
    )


def measure_negations(negations: Sequence[Negation], vad: npt.ArrayLike) -> NegationScores:
    """Compare the predicted VAD [n, 3] of sentences with the sides that are right.

    Raises:
        ValueError: there are no sentences, or VAD is not that of these.
    """
    values = np.asarray(vad, np.float64)
    if not negations or values.shape != (len(negations), 3):
        raise ValueError(f"expected VAD [n, 3] of {len(negations)} sentences, got {values.shape}")
    is_right = _is_high(values, _VALENCE) == np.array([item.valence == "high" for item in negations])
    turned = np.array([item.is_turned for item in negations])
    known = np.array([bool(item.arousal) for item in negations])
    aroused = _is_high(values, _AROUSAL) == np.array([item.arousal == "high" for item in negations])
    return NegationScores(
        valence=Share.of(is_right),
        turned=_share_if_any(is_right[turned]),
        kept=_share_if_any(is_right[~turned]),
        arousal=_share_if_any(aroused[known]),
    )


def calibration_error(confidence: npt.ArrayLike, is_right: npt.ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error of probabilities [n]: Guo et al. (2017), equation 3, bins of equal width.

    A bin holds the probabilities above its lower end, up to and with its upper end; the first one 0 too.
    """
    probability, right = np.asarray(confidence, np.float64), np.asarray(is_right, np.float64)
    member = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(member, weights=right - probability, minlength=bins)  # of sums: n_b * (accuracy - confidence)
    return float(np.abs(gaps).sum() / len(probability))


def differences(text: StoryScores, speech: StoryScores) -> dict[str, float]:
    """Return how much each measure of speech is above that of the text alone: shares, counts, bits and correlations."""
    return {name: value - main_measures(text)[name] for name, value in main_measures(speech).items()}


def main_measures(scores: StoryScores) -> dict[str, float]:
    """Return what the same stories can be compared by, as text and as speech."""
    shares = ("valence_side", "octant", "vad_octant", "family", "emotion")
    told_apart = {} if scores.told_apart is None else {"told_apart": scores.told_apart.balanced_accuracy}
    agreements = {f"{name}_pcc": item.pcc for name, item in scores.dimensions.items()}
    return {
        **{name: getattr(scores, name).share for name in shares},
        "used": float(scores.used),
        "entropy": scores.entropy,
        "most_frequent_share": scores.most_frequent_share,
        **told_apart,
        **agreements,
    }


def to_json(scores: StoryScores | NegationScores) -> dict[str, Any]:
    """Return plain data."""
    return asdict(scores)


def _check_fit(count: int, answers: Answers, anchors: Anchors) -> None:
    if len(answers.vad) != count or answers.probabilities.shape[1] != len(anchors.labels):
        raise ValueError(
            f"{len(answers.vad)} answers about {answers.probabilities.shape[1]} emotions do not fit "
            f"{count} stories and {len(anchors.labels)} emotions"
        )


def _share_if_any(hits: npt.NDArray[np.bool_]) -> Share | None:
    return Share.of(hits) if len(hits) else None


def _is_high(vad: Array, column: int) -> npt.NDArray[np.bool_]:
    high: npt.NDArray[np.bool_] = vad[:, column] > NEUTRAL_VAD
    return high


def _entropy(counts: Sequence[int]) -> float:
    """Entropy in bits of what was counted."""
    shares = np.array(counts) / sum(counts)
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def _told_apart(
    true: npt.NDArray[np.str_], vad: Array, anchors: Anchors, families: npt.NDArray[np.str_]
) -> ToldApart | None:
    """Let the nearest of the families' anchors decide, for the stories of these families."""
    if not set(TOLD_APART) <= set(true):
        return None
    ours, candidates = np.isin(true, TOLD_APART), np.isin(families, TOLD_APART)
    distance = np.linalg.norm(vad[ours][:, None] - anchors.vad[candidates][None], axis=2)  # [stories, anchors]
    nearest = families[candidates][distance.argmin(axis=1)]
    recall = {name: float((nearest[true[ours] == name] == name).mean()) for name in TOLD_APART}
    return ToldApart(sum(recall.values()) / len(recall), recall, int(ours.sum()))


def _chosen_probability(answers: Answers) -> Array:
    chosen: Array = answers.probabilities[np.arange(len(answers.chosen)), answers.chosen]
    return chosen


def _octant_probability(answers: Answers, octants: npt.NDArray[np.str_]) -> Array:
    """Sum of the probabilities of all emotions of the chosen one's octant."""
    same = octants[answers.chosen][:, None] == octants[None]  # [n, K]
    summed: Array = np.where(same, answers.probabilities, 0.0).sum(axis=1)
    return summed


def _spread(predicted: Array, true: Array) -> dict[str, float]:
    ratios = predicted.std(axis=0) / np.maximum(true.std(axis=0), 1e-9)
    return {name: float(ratio) for name, ratio in zip(DIMENSIONS, ratios, strict=True)}


def _confusion(true: npt.NDArray[np.str_], chosen: npt.NDArray[np.str_]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(((true == row) & (chosen == column)).sum()) for column in OCTANTS) for row in OCTANTS)
