"""Training the map: the split of the terms, the training points, the classifier (eq 22), and the metrics."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn

from attune_training.config import MAX_VAD, MIN_VAD
from attune_training.emotion_map.anchors import Anchors
from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.emotion_map.clusters import EmotionMap, Labels, fit_emotion_map, octant_agreement, report_clusters
from attune_training.emotion_map.lexicon import Lexicon
from attune_training.emotion_map.scale import Array

__all__ = ["MapConfig", "Split", "TrainedMap", "split_terms", "train_emotion_map"]

PAPER_SCORES = {"accuracy": 0.9220, "precision": 0.9253, "recall": 0.9220, "f1": 0.9220}
"""Figures that section III-D reports for the NRC VAD Lexicon v2.1."""


@dataclass(frozen=True, slots=True)
class MapConfig:
    """Hyperparameters of the map.

    `anchor_weight`: weight of an emotion's anchor in K-means, in average clusters of terms; 0 is plain K-means.
    `held_out`: the fraction of terms for validation, and again for the test.
    `steps` batches make an epoch; `jitter` is the standard deviation around lexicon terms, on the -1..1 scale.
    `first_temperature`, `last_temperature`: temperature of the soft labels at the start and at the end, in squared
    distance on the -1..1 scale (`memberships`). After the fraction `settling` of the epochs the batch statistics are
    frozen, and early stopping begins, with `patience` epochs.
    """

    anchor_weight: float = 1.0
    held_out: float = 0.1
    channels: int = 32
    epochs: int = 30
    steps: int = 100
    batch_size: int = 512
    learning_rate: float = 2e-2
    patience: int = 5
    jitter: float = 0.1
    first_temperature: float = 0.1
    last_temperature: float = 0.01
    settling: float = 0.5
    seed: int = 0

    def is_settled(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, comes after `settling`; the last one always does."""
        return epoch >= min(self.settling * self.epochs, self.epochs - 1)

    def temperature_at(self, progress: float) -> float:
        """Return the temperature at `progress` 0..1, decaying geometrically from the first to the last."""
        return self.first_temperature * (self.last_temperature / self.first_temperature) ** progress


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the terms for training, validation and test."""

    train: Labels
    validation: Labels
    test: Labels


def split_terms(clusters: Labels, held_out: float, seed: int) -> Split:
    """Split at random, stratified by cluster, with the fraction `held_out` each for validation and test."""
    order = np.random.default_rng(seed).permutation(len(clusters))
    order = order[np.argsort(clusters[order], kind="stable")]
    # Terms are ordered by cluster, and every period-th term is held out.
    turn = np.arange(len(order)) % round(1 / held_out)
    return Split(train=order[turn > 1], validation=order[turn == 1], test=order[turn == 0])


class _Sampler:
    """Sampler of training points: half near the training terms, half uniform over the 1..5 scales.

    The target is the nearest centroid, so every point of the space has a label; validation and test use terms.
    """

    def __init__(self, emotion_map: EmotionMap, train_vad: Array, jitter: float) -> None:
        self._terms = _tensor(emotion_map.normalise(train_vad))
        corners = np.array([[MIN_VAD] * 3, [MAX_VAD] * 3])
        self._low, self._high = _tensor(emotion_map.normalise(corners))
        self._jitter = jitter

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points [count, 3] on -1..1."""
        picks = torch.randint(len(self._terms), (count // 2,), generator=generator)
        near = self._terms[picks] + self._jitter * torch.randn(count // 2, 3, generator=generator)
        anywhere = self._low + (self._high - self._low) * torch.rand(count - count // 2, 3, generator=generator)
        return torch.cat([near, anywhere])


def memberships(points: Tensor, centroids: Tensor, temperature: float) -> Tensor:
    """Return the soft labels [B, K] of points [B, 3] and centroids [K, 3]: softmax of -distance^2 / temperature.

    They are y of equation 22, whose one-hot labels are the limit at temperature 0. At a low temperature they equal the
    one-hot labels away from the decision boundaries, and encode the distance to a boundary near it.
    """
    # The exact distance: the computation by matrix product is inaccurate near a boundary.
    distances = torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    return (-(distances**2) / temperature).softmax(dim=1)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array).float()


class _EarlyStopping:
    """Early stopping: keeps the best weights, and stops after `patience` epochs without improvement."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best_loss = math.inf
        self._since_best = 0
        self.best: dict[str, Tensor] = {}

    def should_stop(self, loss: float, model: nn.Module) -> bool:
        if loss < self._best_loss:
            self._best_loss, self._since_best = loss, 0
            self.best = copy.deepcopy(model.state_dict())
        else:
            self._since_best += 1
        return self._since_best == self._patience


class _Training:
    """One training run of the classifier on the points of a map.

    During training the network's outputs are its logits times the temperature, so that their magnitude does not change
    as the temperature decays; the last temperature is folded into the output layer at the end.
    """

    def __init__(self, emotion_map: EmotionMap, train_vad: Array, config: MapConfig) -> None:
        torch.manual_seed(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._config = config
        self.temperature = config.first_temperature
        self._centroids = _tensor(emotion_map.centroids)
        self._sampler = _Sampler(emotion_map, train_vad, config.jitter)
        self.model = EmotionClassifier(len(emotion_map.labels), config.channels)
        self.model.minimum.copy_(_tensor(emotion_map.minimum))
        self.model.maximum.copy_(_tensor(emotion_map.maximum))
        self._optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self._total_steps = config.epochs * config.steps
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, config.learning_rate, self._total_steps, pct_start=0.1
        )

    def run_epoch(self, epoch: int) -> None:
        """Run `config.steps` optimiser steps; `epoch` counts from 0."""
        _set_training(self.model, self._config.is_settled(epoch))
        for step in range(epoch * self._config.steps, (epoch + 1) * self._config.steps):
            self.temperature = self._config.temperature_at(step / self._total_steps)
            self._step()

    def _step(self) -> None:
        points = self._sampler.draw(self._config.batch_size, self._generator)
        targets = memberships(points, self._centroids, self.temperature)
        loss = nn.functional.cross_entropy(self.model.logits(points) / self.temperature, targets)  # equation 22
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()

    @torch.no_grad()
    def finish(self, weights: dict[str, Tensor]) -> EmotionClassifier:
        """Return the classifier with those weights and the last temperature folded in, in evaluation mode."""
        self.model.load_state_dict(weights)
        for parameter in self.model.output.parameters():
            parameter.div_(self._config.last_temperature)
        return self.model.eval()


def _train_classifier(
    emotion_map: EmotionMap, vad: Array, clusters: Labels, split: Split, config: MapConfig, console: Console
) -> tuple[EmotionClassifier, int]:
    """Return the classifier with the lowest validation loss, and the number of epochs run."""
    training = _Training(emotion_map, vad[split.train], config)
    held = _tensor(emotion_map.normalise(vad[split.validation]))
    held_clusters = torch.from_numpy(clusters[split.validation])
    stopping, epoch = _EarlyStopping(config.patience), 0
    with Progress(console=console, transient=True) as progress:
        for epoch in progress.track(range(config.epochs), description="training the emotion map"):
            training.run_epoch(epoch)
            if not config.is_settled(epoch):  # at high learning rates the loss is too noisy for early stopping
                continue
            if stopping.should_stop(_loss(training.model, held, held_clusters, training.temperature), training.model):
                break
    return training.finish(stopping.best), epoch + 1


def _set_training(model: EmotionClassifier, settled: bool) -> None:
    """Set training mode; once settled, with frozen batch statistics, whose noise blurs the decision boundaries."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train(not settled)


@torch.inference_mode()
def _loss(model: EmotionClassifier, points: Tensor, clusters: Tensor, temperature: float) -> float:
    model.eval()
    return float(nn.functional.cross_entropy(model.logits(points) / temperature, clusters))


@torch.inference_mode()
def _classify(model: EmotionClassifier, vad: Array) -> Labels:
    rows = _tensor(vad)
    _, probabilities, _ = model(rows[:, :1], rows[:, 1:])
    winners: Labels = probabilities.argmax(1).numpy()
    return winners


def _scores(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Return accuracy, and precision, recall and F1 weighted by cluster size."""
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    accuracy = accuracy_score(truth, predicted)
    named = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    return {name: round(float(value), 4) for name, value in named.items()}


@dataclass(frozen=True, slots=True)
class TrainedMap:
    """A finished map: the clusters, the classifier, and the metrics."""

    emotion_map: EmotionMap
    classifier: EmotionClassifier
    metrics: dict[str, Any]


def train_emotion_map(
    lexicon: Lexicon, anchors: Anchors, config: MapConfig, console: Console | None = None
) -> TrainedMap:
    """Cluster the lexicon, train the classifier, and evaluate it on held-out terms."""
    started = time.monotonic()
    emotion_map = fit_emotion_map(lexicon, anchors, config.anchor_weight)
    plain = fit_emotion_map(lexicon, anchors, anchor_weight=0.0)
    clusters = emotion_map.assign(lexicon.vad)
    split = split_terms(clusters, config.held_out, config.seed)
    classifier, epochs = _train_classifier(
        emotion_map, lexicon.vad, clusters, split, config, console or Console(stderr=True)
    )
    anywhere = np.random.default_rng(config.seed).uniform(MIN_VAD, MAX_VAD, (20_000, 3))
    metrics = {
        "terms": len(lexicon.terms),
        "repeated_terms": lexicon.repeated,
        "scale": asdict(lexicon.scale),
        "split": {name: len(getattr(split, name)) for name in ("train", "validation", "test")},
        "test": _scores(clusters[split.test], _classify(classifier, lexicon.vad[split.test])),
        "paper": PAPER_SCORES,
        "whole_space_accuracy": _scores(emotion_map.assign(anywhere), _classify(classifier, anywhere))["accuracy"],
        "clusters": asdict(report_clusters(emotion_map, lexicon, anchors)),
        "clusters_of_plain_kmeans": asdict(report_clusters(plain, lexicon, anchors)),
        "octants": [asdict(one) for one in octant_agreement(emotion_map, lexicon, anchors)],
        "epochs": epochs,
        "seconds": round(time.monotonic() - started, 1),
        "config": asdict(config),
    }
    return TrainedMap(emotion_map, classifier, metrics)
