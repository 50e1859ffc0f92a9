"""Agreement of predictions with labels: per dimension with bootstrap intervals, and per speaker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attune_training.evaluation.predictions import Predictions
from attune_training.metrics import Agreement, agreement
from attune_training.models.losses import huber_loss

__all__ = ["DimensionScore", "Interval", "Scores", "markdown", "score", "to_json"]

_RESAMPLES = 1000
_HUBER_DELTA = 1.0
_MIN_OF_SPEAKER = 3
_MIN_LABELS = 2
_SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DimensionScore:
    """One dimension of one corpus, n utterances.

    `loss` is the mean squared error for valence, and the Huber loss (delta 1) for arousal and dominance, as in the
    paper's tables. `spread` is the standard deviation of the predictions over that of the labels. The intervals are
    percentiles of 1,000 bootstrap samples of the utterances; utterances of one speaker are correlated, so another set
    of speakers may well fall outside.
    """

    pcc: float
    ccc: float
    rmse: float
    loss: float
    count: int
    pcc_interval: Interval
    ccc_interval: Interval
    rmse_interval: Interval
    loss_interval: Interval
    spread: float


@dataclass(frozen=True, slots=True)
class Scores:
    """`dimensions` by name, and `speakers`: agreement by speaker and dimension.

    A dimension with fewer than two labels is in neither.
    """

    dimensions: dict[str, DimensionScore]
    speakers: dict[str, dict[str, Agreement]]


def score(predictions: Predictions, seed: int = 0) -> Scores:
    """Compare predictions with labels, each dimension where it has any; two or more are needed of one of them.

    Raises:
        ValueError: no dimension has two labels.
    """
    dimensions = {}
    for column, name in enumerate(predictions.names):
        known = ~np.isnan(predictions.target[:, column])
        if known.sum() >= _MIN_LABELS:
            predicted, target = predictions.predicted[known, column], predictions.target[known, column]
            dimensions[name] = _dimension(name, predicted, target, seed)
    if not dimensions:
        raise ValueError(f"two or more utterances with labels of {' or '.join(predictions.names)} are needed")
    return Scores(dimensions, _speakers(predictions))


def _dimension(
    name: str, predicted: npt.NDArray[np.float32], target: npt.NDArray[np.float32], seed: int
) -> DimensionScore:
    overall = agreement(predicted, target)
    losses = _losses(name, predicted - target)
    rows = np.random.default_rng(seed).integers(len(target), size=(_RESAMPLES, len(target)))
    samples = [agreement(predicted[index], target[index]) for index in rows]
    return DimensionScore(
        pcc=overall.pcc,
        ccc=overall.ccc,
        rmse=overall.rmse,
        loss=float(losses.mean()),
        count=overall.count,
        pcc_interval=_interval([sample.pcc for sample in samples]),
        ccc_interval=_interval([sample.ccc for sample in samples]),
        rmse_interval=_interval([sample.rmse for sample in samples]),
        loss_interval=_interval(losses[rows].mean(axis=1)),
        spread=float(predicted.std() / max(float(target.std()), _SMALLEST)),
    )


def _losses(name: str, error: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the squared error for valence, Huber's loss (paper, equation 16) otherwise, both [n]."""
    if name == "valence":
        return np.square(error)
    losses: npt.NDArray[np.float32] = huber_loss(torch.from_numpy(error), torch.zeros(len(error)), _HUBER_DELTA).numpy()
    return losses


def _interval(values: list[float] | npt.NDArray[np.floating]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _speakers(predictions: Predictions) -> dict[str, dict[str, Agreement]]:
    """Return agreement by speaker, for speakers with enough labels of a dimension; none where no speaker is known."""
    speakers = np.array([utterance.speaker for utterance in predictions.utterances])
    labelled = ~np.isnan(predictions.target)  # [n, N]
    found: dict[str, dict[str, Agreement]] = {}
    for speaker in sorted(set(speakers) - {""}):
        for column, name in enumerate(predictions.names):
            rows = np.flatnonzero((speakers == speaker) & labelled[:, column])
            if len(rows) >= _MIN_OF_SPEAKER:
                result = agreement(predictions.predicted[rows, column], predictions.target[rows, column])
                found.setdefault(str(speaker), {})[name] = result
    return found


def markdown(scores: Scores) -> str:
    """Return the tables: dimensions, then speakers if several are known."""
    lines = [
        "| dimension | PCC [95 %] | CCC [95 %] | RMSE [95 %] | loss | spread | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, item in scores.dimensions.items():
        cells = (
            _cell(item.pcc, item.pcc_interval),
            _cell(item.ccc, item.ccc_interval),
            _cell(item.rmse, item.rmse_interval),
            f"{item.loss:.4f}",
            f"{item.spread:.2f}",
            str(item.count),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if len(scores.speakers) > 1:
        lines += ["", *_speaker_table(scores.speakers)]
    return "\n".join(lines)


def _cell(value: float, interval: Interval) -> str:
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _speaker_table(speakers: Mapping[str, Mapping[str, Agreement]]) -> list[str]:
    names = list(dict.fromkeys(name for row in speakers.values() for name in row))
    lines = [f"| speaker | n | {' | '.join(f'{name} PCC / CCC / RMSE' for name in names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for speaker, row in speakers.items():
        cells = [_triple(row.get(name)) for name in names]
        lines.append(f"| {speaker} | {max(item.count for item in row.values())} | {' | '.join(cells)} |")
    return lines


def _triple(item: Agreement | None) -> str:
    return f"{item.pcc:.3f} / {item.ccc:.3f} / {item.rmse:.3f}" if item else "no labels"


def to_json(scores: Scores) -> dict[str, Any]:
    """Return plain data."""
    return asdict(scores)
