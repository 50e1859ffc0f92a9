"""Training the map: the split of the terms, the points to train on, the classifier (eq 22), and what is measured."""

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

from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.emotion_map.clusters import EmotionMap, Labels, fit_emotion_map, report_clusters
from attune_training.emotion_map.lexicon import MAX_VAD, MIN_VAD, Anchors, Array, Lexicon

__all__ = ["MapConfig", "Split", "TrainedMap", "split_terms", "train_emotion_map"]


@dataclass(frozen=True, slots=True)
class MapConfig:
    """How the map is made.

    `anchor_weight`: how much an emotion's anchor counts in K-means, in average clusters' worth of terms; 0 is plain
    K-means. `held_out`: the share of terms for validation, and again for the test.
    `steps` batches make an epoch; `jitter` is the standard deviation around lexicon terms, on the -1..1 scale.
    """

    anchor_weight: float = 1.0
    held_out: float = 0.1
    channels: int = 128
    epochs: int = 25
    steps: int = 100
    batch_size: int = 1024
    learning_rate: float = 1e-2
    patience: int = 5
    jitter: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the terms for training, validation and test."""

    train: Labels
    validation: Labels
    test: Labels


def split_terms(clusters: Labels, held_out: float, seed: int) -> Split:
    """Stratified: every cluster gives the share `held_out` of its terms to validation and to test, in random order."""
    order = np.random.default_rng(seed).permutation(len(clusters))
    order = order[np.argsort(clusters[order], kind="stable")]
    # Cluster after cluster, every period-th term is held out.
    turn = np.arange(len(order)) % round(1 / held_out)
    return Split(train=order[turn > 1], validation=order[turn == 1], test=order[turn == 0])


class _Sampler:
    """Training points: half near the training terms, half anywhere on the 1..5 scales, where speech may land.

    The rule to learn is the nearest centroid, so every point of the space has a label; validation and test use terms.
    """

    def __init__(self, emotion_map: EmotionMap, train_vad: Array, jitter: float) -> None:
        self._centroids = _tensor(emotion_map.centroids)
        self._terms = _tensor(emotion_map.normalise(train_vad))
        corners = np.array([[MIN_VAD] * 3, [MAX_VAD] * 3])
        self._low, self._high = _tensor(emotion_map.normalise(corners))
        self._jitter = jitter

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points [count, 3] on -1..1 and their clusters [count]."""
        picks = torch.randint(len(self._terms), (count // 2,), generator=generator)
        near = self._terms[picks] + self._jitter * torch.randn(count // 2, 3, generator=generator)
        anywhere = self._low + (self._high - self._low) * torch.rand(count - count // 2, 3, generator=generator)
        points = torch.cat([near, anywhere])
        # The exact distance: the shortcut by matrix product mislabels points near a border.
        mode = "donot_use_mm_for_euclid_dist"
        return points, torch.cdist(points, self._centroids, compute_mode=mode).argmin(1)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array).float()


class _EarlyStopping:
    """Keeps the best weights; says when `patience` epochs have passed without better ones."""

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


def _train_classifier(
    emotion_map: EmotionMap, vad: Array, clusters: Labels, split: Split, config: MapConfig, console: Console
) -> tuple[EmotionClassifier, int]:
    """The classifier with the lowest validation loss, and the number of epochs run."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = EmotionClassifier(len(emotion_map.labels), config.channels)
    model.minimum.copy_(_tensor(emotion_map.minimum))
    model.maximum.copy_(_tensor(emotion_map.maximum))
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * config.steps
    )
    sampler = _Sampler(emotion_map, vad[split.train], config.jitter)
    held = _tensor(emotion_map.normalise(vad[split.validation]))
    held_clusters = torch.from_numpy(clusters[split.validation])
    stopping, epochs = _EarlyStopping(config.patience), 0
    with Progress(console=console, transient=True) as progress:
        for epochs in progress.track(range(1, config.epochs + 1), description="training the emotion map"):  # noqa: B007
            model.train()
            for _ in range(config.steps):
                points, targets = sampler.draw(config.batch_size, generator)
                loss = nn.functional.cross_entropy(model.logits(points), targets)  # equation 22
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            if stopping.should_stop(_loss(model, held, held_clusters), model):
                break
    model.load_state_dict(stopping.best)
    return model.eval(), epochs


@torch.inference_mode()
def _loss(model: EmotionClassifier, points: Tensor, targets: Tensor) -> float:
    model.eval()
    return float(nn.functional.cross_entropy(model.logits(points), targets))


@torch.inference_mode()
def _classify(model: EmotionClassifier, vad: Array) -> Labels:
    rows = _tensor(vad)
    _, probabilities = model(rows[:, :1], rows[:, 1:])
    winners: Labels = probabilities.argmax(1).numpy()
    return winners


def _scores(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 weighted by the size of each cluster."""
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    accuracy = accuracy_score(truth, predicted)
    named = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    return {name: round(float(value), 4) for name, value in named.items()}


@dataclass(frozen=True, slots=True)
class TrainedMap:
    """A finished map: the clusters, the classifier, and what was measured."""

    emotion_map: EmotionMap
    classifier: EmotionClassifier
    metrics: dict[str, Any]


def train_emotion_map(
    lexicon: Lexicon, anchors: Anchors, config: MapConfig, console: Console | None = None
) -> TrainedMap:
    """Cluster the lexicon, train the classifier, and measure it on held-out terms."""
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
        "scale": list(lexicon.scale),
        "split": {name: len(getattr(split, name)) for name in ("train", "validation", "test")},
        "test": _scores(clusters[split.test], _classify(classifier, lexicon.vad[split.test])),
        "whole_space_accuracy": _scores(emotion_map.assign(anywhere), _classify(classifier, anywhere))["accuracy"],
        "clusters": asdict(report_clusters(emotion_map, lexicon, anchors)),
        "clusters_of_plain_kmeans": asdict(report_clusters(plain, lexicon, anchors)),
        "epochs": epochs,
        "seconds": round(time.monotonic() - started, 1),
        "config": asdict(config),
    }
    return TrainedMap(emotion_map, classifier, metrics)
