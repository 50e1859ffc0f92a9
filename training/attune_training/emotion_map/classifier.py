"""The emotion classifier: the two-block CNN of section III-D, including its scaling (eq 20) and its softmax.

Beside the paper's answer it gives one that knows how wrong VAD may be: the mean of the CNN's answers at points around
VAD, drawn as VAD's errors are. Letters: B batch, P points, K emotions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor, nn

from attune_training.config import MAX_VAD, MIN_VAD

__all__ = ["EmotionClassifier"]

_DIMENSIONS = 3  # valence, arousal, dominance

_POINTS = 7  # two to this power, a half of all that are drawn: each has its mirror image


def _block(in_channels: int, out_channels: int, pool_stride: int) -> nn.Sequential:
    """Build one block of section III-D: convolution, normalisation, pooling, activation.

    Average pooling and a smooth activation, since the target function is smooth: up to a term common to all emotions,
    the squared distance to a centroid is linear in the point; ReLU would be piecewise linear. (Accuracy on terms after
    1,500 steps, one seed: .997 as is, .993 with max pooling, .991 with ReLU.)
    """
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm1d(out_channels),
        nn.AvgPool1d(kernel_size=2, stride=pool_stride),
        nn.SiLU(),
    )


class EmotionClassifier(nn.Module):
    """VAD to emotion: min-max scaling (equation 20) and the CNN, with the softmax at its end."""

    minimum: Tensor
    maximum: Tensor
    offsets: Tensor

    def __init__(self, num_emotions: int, channels: int, spread: Sequence[float] = (0.0,) * _DIMENSIONS) -> None:
        """Take the number of emotions, the CNN's width, and the standard deviation of VAD's error by dimension."""
        super().__init__()
        self.register_buffer("offsets", _normal_points() * torch.tensor(spread, dtype=torch.float32), persistent=False)
        self.register_buffer("minimum", torch.zeros(_DIMENSIONS))
        self.register_buffer("maximum", torch.ones(_DIMENSIONS))
        self.blocks = nn.Sequential(
            _block(1, channels, pool_stride=1),  # [B, 1, 3] -> [B, C, 2]
            _block(channels, channels, pool_stride=2),  # [B, C, 2] -> [B, C, 1]
        )
        self.output = nn.Linear(channels, num_emotions)

    def forward(self, valence: Tensor, arousal_dominance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [B, 1] and [B, 2] on 1..5 to VAD [B, 3] on 1..5 and two tables of emotion probabilities [B, K].

        The first is the paper's, of VAD as it is; the second the mean over VAD's error, on 1..5 at every point.
        """
        vad = torch.cat([valence, arousal_dominance], dim=1)  # [B, 3]
        around = (vad[:, None] + self.offsets).clamp(MIN_VAD, MAX_VAD)  # [B, P, 3]
        answers = self.logits(self._scaled(around.flatten(0, 1))).softmax(dim=1)  # [B * P, K]
        expected = answers.unflatten(0, (-1, len(self.offsets))).mean(dim=1)  # [B, K]
        return vad, self.logits(self._scaled(vad)).softmax(dim=1), expected

    def _scaled(self, vad: Tensor) -> Tensor:
        """Equation 20: [*, 3] on 1..5 to -1..1."""
        return 2 * (vad - self.minimum) / (self.maximum - self.minimum) - 1.0

    def logits(self, points: Tensor) -> Tensor:
        """Map points [B, 3] on -1..1 to logits [B, K]."""
        features: Tensor = self.blocks(points.unsqueeze(1)).flatten(1)  # [B, C]
        return self.output(features)


def _normal_points() -> Tensor:
    """Return points [P, 3] of a standard normal distribution, evenly spread (Sobol) and of mean zero; always the same.

    A grid of as many would lie further apart than the emotions do.
    """
    drawn = norm.ppf(qmc.Sobol(_DIMENSIONS, seed=0).random_base2(_POINTS))
    return torch.from_numpy(np.concatenate([drawn, -drawn])).float()
