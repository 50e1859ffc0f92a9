"""The paper's losses: smoothed MSE for valence, Huber with dynamic weights for arousal and dominance (equations 14-19).

Letters: B batch. Every loss takes a weight for each sample, so that a corpus may count more than another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "NEUTRAL",
    "DynamicWeighting",
    "ValenceSmoothing",
    "arousal_dominance_loss",
    "dynamic_weights",
    "smooth_mse",
    "smoothed_target",
]

NEUTRAL = 3.0
"""The neutral point of the 1..5 scale."""


@dataclass(frozen=True, slots=True)
class ValenceSmoothing:
    """Label smoothing of valence; ``epsilon`` is the share of the neutral value (equation 15)."""

    epsilon: float = 0.05
    neutral: float = NEUTRAL


@dataclass(frozen=True, slots=True)
class DynamicWeighting:
    """Constants of equations 16-19; the paper names them and gives no values, so these are ours.

    ``huber_delta`` is the delta of equation 16. Where dominance's loss exceeds ``beta`` times arousal's, dominance's
    weight is multiplied by ``gamma`` and arousal's by ``delta``. ``minimum`` and ``maximum`` clip the weights.
    """

    huber_delta: float = 1.0
    alpha: float = 1.0
    beta: float = 1.5
    gamma: float = 1.2
    delta: float = 0.8
    minimum: float = 0.3
    maximum: float = 0.7


def smoothed_target(target: Tensor, smoothing: ValenceSmoothing) -> Tensor:
    """Move targets towards neutral: y (1 - epsilon) + neutral epsilon (paper, equation 15)."""
    return target * (1.0 - smoothing.epsilon) + smoothing.neutral * smoothing.epsilon


def smooth_mse(predicted: Tensor, target: Tensor, weight: Tensor, smoothing: ValenceSmoothing) -> Tensor:
    """Return the weighted mean squared error of predicted [B, 1] against smoothed targets [B, 1] (equation 14).

    ``weight`` is [B, 1].
    """
    return (weight * (predicted - smoothed_target(target, smoothing)).square()).mean()


def dynamic_weights(arousal_loss: Tensor, dominance_loss: Tensor, settings: DynamicWeighting) -> tuple[Tensor, Tensor]:
    """Return the weights of arousal and dominance from their losses (equations 17-18 and the rule below them).

    The weights are normalised to a sum of one, then clipped. No gradient flows through them.
    """
    arousal_loss, dominance_loss = arousal_loss.detach(), dominance_loss.detach()
    total = (arousal_loss + dominance_loss).clamp(min=1e-12)
    arousal = settings.alpha * arousal_loss / total
    dominance = settings.alpha * dominance_loss / total
    lagging = dominance_loss > settings.beta * arousal_loss
    dominance = torch.where(lagging, dominance * settings.gamma, dominance)
    arousal = torch.where(lagging, arousal * settings.delta, arousal)
    scale = (arousal + dominance).clamp(min=1e-12)
    return (
        (arousal / scale).clamp(settings.minimum, settings.maximum),
        (dominance / scale).clamp(settings.minimum, settings.maximum),
    )


def arousal_dominance_loss(predicted: Tensor, target: Tensor, weight: Tensor, settings: DynamicWeighting) -> Tensor:
    """Return the combined Huber loss (equations 16 and 19) of predicted and target [B, 2]: arousal, dominance.

    ``weight`` is [B, 1].
    """
    huber = functional.huber_loss(predicted, target, reduction="none", delta=settings.huber_delta)  # [B, 2]
    arousal_loss, dominance_loss = (weight * huber).mean(dim=0)
    arousal_weight, dominance_weight = dynamic_weights(arousal_loss, dominance_loss, settings)
    return arousal_weight * arousal_loss + dominance_weight * dominance_loss
