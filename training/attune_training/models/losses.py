"""The paper's losses: smoothed MSE for valence, Huber with dynamic weights for arousal and dominance (equations 14-19).

Beside them stands the project's own, `agreement_loss`, which asks for agreement within each corpus.

Letters: B batch, N outputs. Every loss takes a weight for each sample, so that a corpus may count more than another;
with weights of one it is the paper's. A target that is NaN has no label: it adds nothing to the loss, and no gradient.
A loss stays a mean over B, so that a label counts the same whatever is missing beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attune_training.config import NEUTRAL_VAD

__all__ = [
    "AgreementLoss",
    "DynamicWeighting",
    "ValenceSmoothing",
    "agreement_loss",
    "arousal_dominance_loss",
    "combined_loss",
    "dynamic_weights",
    "huber_loss",
    "labelled",
    "lifted_weights",
    "loss_shares",
    "smooth_mse",
    "smoothed_target",
]


# Avoids division by zero where both losses are zero.
_SMALLEST = 1e-12

# Of 1..5: keeps the gradient of a correlation finite where hardly anything varies.
_SMALLEST_VARIANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ValenceSmoothing:
    """Label smoothing of valence; `epsilon` is the share of the neutral value (equation 15)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a misspelt name in a recipe is refused

    epsilon: float = 0.05
    neutral: float = NEUTRAL_VAD


@dataclass(frozen=True, slots=True)
class DynamicWeighting:
    """Constants of equations 16-19; the paper gives no values, so these are the project's own.

    The paper writes delta for two things: `huber_delta` is that of equation 16. Where dominance's loss is above
    `beta` times arousal's, dominance's weight is multiplied by `gamma` and arousal's by `delta`. `minimum` and
    `maximum`, the paper's r_min and r_max, clip the weights.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a misspelt name in a recipe is refused

    huber_delta: float = 1.0
    alpha: float = 1.0
    beta: float = 1.5
    gamma: float = 1.2
    delta: float = 0.8
    minimum: float = 0.3
    maximum: float = 0.7


@dataclass(frozen=True, slots=True)
class AgreementLoss:
    """Constants of `agreement_loss`: the weight of agreement, that of the errors, and the errors' Huber delta.

    A corpus with fewer than `smallest` labels in a batch adds errors alone: so few say little of agreement.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a misspelt name in a recipe is refused

    agreement: float = 1.0
    error: float = 0.5
    huber_delta: float = 1.0
    smallest: int = 6


def labelled(target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target [B, N] with a number in place of every NaN, and 1 where there was a label, 0 elsewhere."""
    return target.nan_to_num(nan=NEUTRAL_VAD), target.isnan().logical_not().to(target.dtype)


def smoothed_target(target: Tensor, smoothing: ValenceSmoothing) -> Tensor:
    """Equation 15: move targets towards neutral, y (1 - epsilon) + neutral epsilon; any shape."""
    return target * (1.0 - smoothing.epsilon) + smoothing.neutral * smoothing.epsilon


def smooth_mse(predicted: Tensor, target: Tensor, weight: Tensor, smoothing: ValenceSmoothing) -> Tensor:
    """Equation 14: the mean squared error of predicted [B, 1] against the smoothed targets [B, 1].

    Each sample's squared error counts `weight` [B, 1] times, over B; not at all where the target is NaN.
    """
    target, known = labelled(target)
    return (weight * known * (predicted - smoothed_target(target, smoothing)).square()).mean()


def huber_loss(predicted: Tensor, target: Tensor, delta: float) -> Tensor:
    """Equation 16, elementwise: e^2 / 2 where |e| <= delta, delta |e| - delta^2 / 2 elsewhere."""
    return functional.huber_loss(predicted, target, reduction="none", delta=delta)


def loss_shares(arousal_loss: Tensor, dominance_loss: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Equations 17 and 18: alpha times each loss's share of their sum; both zero where both losses are."""
    total = (arousal_loss + dominance_loss).clamp(min=_SMALLEST)
    return alpha * arousal_loss / total, alpha * dominance_loss / total


def lifted_weights(
    weights: tuple[Tensor, Tensor], losses: tuple[Tensor, Tensor], settings: DynamicWeighting
) -> tuple[Tensor, Tensor]:
    """Apply the rule below equation 18; both arguments are (arousal, dominance).

    Where dominance's loss is above beta times arousal's, dominance's weight is multiplied by gamma, arousal's by delta.
    """
    (arousal, dominance), (arousal_loss, dominance_loss) = weights, losses
    lagging = dominance_loss > settings.beta * arousal_loss
    return (
        torch.where(lagging, arousal * settings.delta, arousal),
        torch.where(lagging, dominance * settings.gamma, dominance),
    )


def dynamic_weights(arousal_loss: Tensor, dominance_loss: Tensor, settings: DynamicWeighting) -> tuple[Tensor, Tensor]:
    """Return the weights of arousal and dominance: equations 17 and 18, the rule below them, normalised, then clipped.

    The order is the paper's: "subsequently normalized and clipped". So the weights sum to one unless a bound cut one of
    them, and alpha, which scales both alike, is undone by the normalisation. No gradient flows through them. Where both
    losses are zero, both weights are the lower bound.
    """
    losses = arousal_loss.detach(), dominance_loss.detach()
    arousal, dominance = lifted_weights(loss_shares(*losses, settings.alpha), losses, settings)
    total = (arousal + dominance).clamp(min=_SMALLEST)
    return (
        (arousal / total).clamp(settings.minimum, settings.maximum),
        (dominance / total).clamp(settings.minimum, settings.maximum),
    )


def combined_loss(weights: tuple[Tensor, Tensor], losses: tuple[Tensor, Tensor]) -> Tensor:
    """Equation 19: the sum of arousal's and dominance's losses, each times its weight."""
    return weights[0] * losses[0] + weights[1] * losses[1]


def arousal_dominance_loss(predicted: Tensor, target: Tensor, weight: Tensor, settings: DynamicWeighting) -> Tensor:
    """Return the loss of predicted and target [B, 2], arousal and dominance: equations 16 to 19 over the batch.

    Each sample's Huber losses count `weight` [B, 1] times, over B; not at all where the target is NaN. The weights of
    arousal and dominance come from the loss for each label, so that one does not seem better for having fewer labels.
    """
    target, known = labelled(target)
    errors = weight * known * huber_loss(predicted, target, settings.huber_delta)  # [B, 2]
    arousal_loss, dominance_loss = errors.mean(dim=0)
    arousal_each, dominance_each = errors.mean(dim=0) / known.mean(dim=0).clamp(min=_SMALLEST)
    weights = dynamic_weights(arousal_each, dominance_each, settings)
    return combined_loss(weights, (arousal_loss, dominance_loss))


def agreement_loss(
    predicted: Tensor, target: Tensor, weight: Tensor, corpus: Tensor, relative: Tensor, settings: AgreementLoss
) -> Tensor:
    """Return one minus agreement within each corpus of the batch, and Huber's loss, summed over the N dimensions.

    Agreement is the concordance correlation coefficient (Lin 1989), so that predictions that shrink towards the middle
    cost; in a corpus whose ratings are `relative` it is Pearson's, and there are no errors: such ratings say which
    utterance lies higher, and not how high. Each corpus counts as its labelled samples do, of all B, with the mean of
    their weights.

    Args:
        predicted: [B, N] on 1..5.
        target: [B, N] on 1..5, NaN where there is no label.
        weight: [B, 1], of each sample.
        corpus: [B] int64, the index of each sample's corpus.
        relative: [C] boolean, of each corpus.
        settings: the constants.
    """
    target, known = labelled(target)
    is_absolute = (~relative[corpus]).to(predicted.dtype)[:, None]  # [B, 1]
    errors = weight * known * is_absolute * huber_loss(predicted, target, settings.huber_delta)
    loss = settings.error * errors.mean(dim=0).sum()
    for index in corpus.unique():
        for column in range(predicted.shape[1]):
            ours = (corpus == index) & (known[:, column] > 0)
            count = int(ours.sum())
            if count >= settings.smallest:
                found = _disagreement(predicted[ours, column], target[ours, column], bool(relative[index]))
                loss = loss + settings.agreement * weight[ours].mean() * count / len(target) * found
    return loss


def _disagreement(predicted: Tensor, target: Tensor, is_relative: bool) -> Tensor:
    """One minus Pearson's correlation, or Lin's, of two vectors [n]."""
    mean, true_mean = predicted.mean(), target.mean()
    covariance = ((predicted - mean) * (target - true_mean)).mean()
    variance, true_variance = predicted.var(correction=0), target.var(correction=0)
    if is_relative:
        return 1.0 - covariance / (variance * true_variance + _SMALLEST_VARIANCE**2).sqrt()
    return 1.0 - 2.0 * covariance / (variance + true_variance + (mean - true_mean).square() + _SMALLEST_VARIANCE)
