"""Fit the layer over the sentence embedding, VAD's error, and how much each side counts.

Letters: N texts, K emotions, D width of a sentence embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch.nn import functional

from attune_training.providers import combined

__all__ = ["Exponents", "Layer", "fit_exponents", "fit_layer", "log_loss", "vad_error"]

Array = npt.NDArray[np.float32]

_PENALTIES = (3e-5, 1e-4, 3e-4, 1e-3)
_STEPS = 100
# VAD decides the region, so it always counts; the voice, which these texts lack, speaks through it alone.
_VAD_EXPONENTS = np.arange(0.5, 1.51, 0.1)
_WORDS_EXPONENTS = np.arange(0.0, 2.51, 0.1)
_SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: `weights` [K, D] and `bias` [K], fitted with `penalty` times the sum of the squared weights."""

    weights: Array
    bias: Array
    penalty: float

    def probabilities(self, embeddings: Array) -> Array:
        """Return [N, K] of embeddings [N, D]."""
        found: Array = softmax(embeddings @ self.weights.T + self.bias, axis=1).astype(np.float32)
        return found


@dataclass(frozen=True, slots=True)
class Exponents:
    """How much VAD and words count, and the log loss on the texts that they were fitted on."""

    vad: float
    words: float
    loss: float


def fit_layer(
    train: Array, emotions: Sequence[int], neutral: Array, validation: Array, right: Sequence[int], count: int
) -> Layer:
    """Return the layer with the lowest log loss on validation texts.

    `train` [N, D] are embeddings of texts with emotions [N], below `count`. Of `neutral` ones every emotion is equally
    likely, so that words without feeling decide nothing.
    """
    rows = torch.from_numpy(np.concatenate([train, neutral]))
    certain = functional.one_hot(torch.tensor(emotions), count).float()
    targets = torch.cat([certain, torch.full((len(neutral), count), 1.0 / count)])
    layers = [_fitted(rows, targets, penalty) for penalty in _PENALTIES]
    return min(layers, key=lambda layer: log_loss(layer.probabilities(validation), right))


def _fitted(rows: torch.Tensor, targets: torch.Tensor, penalty: float) -> Layer:
    """Return the layer of the lowest cross-entropy with targets [N, K], the penalty added."""
    weights = torch.zeros(targets.shape[1], rows.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows @ weights.T + bias, targets) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Layer(weights.detach().numpy(), bias.detach().numpy(), penalty)


def vad_error(predicted: npt.NDArray[np.floating], anchors: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    """Return the root mean squared error of VAD [N, 3] by dimension."""
    valence, arousal, dominance = np.sqrt(np.mean(np.square(predicted - anchors), axis=0))
    return float(valence), float(arousal), float(dominance)


def fit_exponents(from_vad: Array, from_words: Array, right: Sequence[int]) -> Exponents:
    """Return the exponents whose product of both tables [N, K] has the lowest log loss.

    Log loss rewards probabilities that are as high as the answers are often right: this is the calibration too.
    """
    found = [
        Exponents(float(vad), float(words), log_loss(combined(from_vad, from_words, vad, words), right))
        for vad in _VAD_EXPONENTS
        for words in _WORDS_EXPONENTS
    ]
    return min(found, key=lambda item: item.loss)


def log_loss(probabilities: npt.NDArray[np.floating], right: Sequence[int]) -> float:
    """Return the mean negative logarithm of the right emotions' probabilities, of a table [N, K]."""
    chosen = probabilities[np.arange(len(right)), np.asarray(right)]
    return float(-np.log(np.maximum(chosen, _SMALLEST)).mean())
