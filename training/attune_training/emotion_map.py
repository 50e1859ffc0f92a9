"""The emotion map: from valence, arousal and dominance to one of 40 emotions (paper, section III-D).

A lexicon of words with VAD ratings is scaled to -1..1 (eq 20) and clustered by K-means into 40 clusters that start from
the 40 anchors of the knowledge base (eq 21); a small CNN learns the clusters (eq 22). Run it with:

    python -m attune_training.emotion_map --lexicon glasgow_norms.csv --anchors emotions.yaml --output DIR
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn

__all__ = [
    "EmotionClassifier",
    "EmotionMap",
    "Lexicon",
    "LexiconError",
    "MapConfig",
    "fit_emotion_map",
    "load_emotion_classifier",
    "octants_of",
    "read_anchors",
    "read_lexicon",
    "save_emotion_map",
    "train_emotion_map",
]

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

VAD_DIMENSIONS = ("valence", "arousal", "dominance")
MIN_VAD, MIDDLE_VAD, MAX_VAD = 1.0, 3.0, 5.0
SCALES = ((0.0, 1.0), (-1.0, 1.0), (1.0, 5.0), (1.0, 9.0))
"""Scales that a lexicon may be rated on, tried in this order: NRC VAD v1, NRC VAD v2.1, Attune's own, Glasgow Norms."""

MIN_TERMS = 400
_TERM_COLUMNS = ("term", "word")
_CLASSIFIER_FILE, _MAP_FILE, _LABELS_FILE, _METRICS_FILE = "cnn.safetensors", "map.json", "labels.json", "metrics.json"


class LexiconError(ValueError):
    """A lexicon or a file of anchors cannot be read; the message names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words with their ratings: `vad` is [N, 3] on 1..5, read from ratings on `scale`."""

    terms: tuple[str, ...]
    vad: Array
    scale: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Anchors:
    """The emotions in class order: labels and their VAD [K, 3] on 1..5."""

    labels: tuple[str, ...]
    vad: Array


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


# Lexicons and anchors


def read_lexicon(path: Path) -> Lexicon:
    """A VAD lexicon, rescaled to 1..5.

    Reads NRC VAD v2.1 (tab-separated, header, -1..1), NRC VAD v1 (tab-separated, 0..1, with or without header), the
    Glasgow Norms (CSV, 1..9), and any tab- or comma-separated table with the columns term (or word), valence, arousal,
    dominance on one of those scales or 1..5. Raises `LexiconError`, with the line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LexiconError(f"cannot read the lexicon {path}: {error}") from error
    rows = list(_rows_of(text))
    if not rows:
        raise LexiconError(f"{path}: the lexicon is empty")
    columns = _columns_of(rows[0][1], path)
    ratings = [_rating(line, row, columns, path) for line, row in rows[_has_header(rows[0][1]) :]]
    if len(ratings) < MIN_TERMS:
        raise LexiconError(f"{path}: {len(ratings)} terms are too few for the map; at least {MIN_TERMS} are needed")
    raw = np.array([vad for _, vad in ratings])
    scale = _scale_of(raw, path)
    return Lexicon(tuple(term for term, _ in ratings), _rescale(raw, scale), scale)


def _rows_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """The filled rows with their line numbers."""
    lines = text.splitlines()
    tabs = bool(lines) and "\t" in lines[0]
    # Quotation marks mean nothing in the tab-separated lexicons.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def _has_header(row: list[str]) -> bool:
    return not any(_is_number(cell) for cell in row[1:])


def _columns_of(first: list[str], path: Path) -> tuple[int, ...]:
    """Where term, valence, arousal and dominance are."""
    if not _has_header(first):
        if len(first) != 4:
            raise LexiconError(f"{path}: without a header the columns must be term, valence, arousal, dominance")
        return (0, 1, 2, 3)
    names = [cell.strip().lower() for cell in first]
    term = next((name for name in _TERM_COLUMNS if name in names), None)
    missing = [name for name in VAD_DIMENSIONS if name not in names]
    if term is None or missing:
        raise LexiconError(f"{path}: the header must name term (or word), valence, arousal and dominance")
    return tuple(names.index(name) for name in (term, *VAD_DIMENSIONS))


def _rating(line: int, row: list[str], columns: tuple[int, ...], path: Path) -> tuple[str, list[float]]:
    cells = [row[column].strip() if column < len(row) else "" for column in columns]
    if not cells[0] or not all(_is_number(cell) for cell in cells[1:]):
        raise LexiconError(f"{path}, line {line}: needs a term and three numbers, got {cells}")
    return cells[0], [float(cell) for cell in cells[1:]]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _scale_of(raw: Array, path: Path) -> tuple[float, float]:
    """The first scale that holds every rating; each dimension has to use more than half of it."""
    low, high = raw.min(0), raw.max(0)  # [3]
    for scale in SCALES:
        if (low >= scale[0]).all() and (high <= scale[1]).all():
            if ((high - low) > (scale[1] - scale[0]) / 2).all():
                return scale
            break
    known = ", ".join(f"{low:g}..{high:g}" for low, high in SCALES)
    raise LexiconError(
        f"{path}: the ratings run from {low.tolist()} to {high.tolist()} (valence, arousal, dominance), "
        f"which is none of the known scales {known}"
    )


def _rescale(raw: Array, scale: tuple[float, float]) -> Array:
    return MIN_VAD + (raw - scale[0]) / (scale[1] - scale[0]) * (MAX_VAD - MIN_VAD)


def read_anchors(path: Path) -> Anchors:
    """Label and anchor of every entry of the knowledge base's YAML file. Raises `LexiconError`."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["emotions"]
        labels = tuple(str(entry["label"]) for entry in entries)
        vad = np.array([[entry["anchor"][name] for name in VAD_DIMENSIONS] for entry in entries], np.float64)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise LexiconError(f"{path}: needs a list 'emotions' with label and anchor: {error!r}") from error
    return Anchors(labels, vad)


# Clusters


@dataclass(frozen=True, slots=True)
class EmotionMap:
    """The scaling and the clusters: `minimum` and `maximum` [3] on 1..5, `centroids` [K, 3] on -1..1."""

    labels: tuple[str, ...]
    minimum: Array
    maximum: Array
    centroids: Array

    def normalise(self, vad: Array) -> Array:
        """Equation 20: from 1..5 to -1..1, by the extremes of the lexicon. [N, 3] to [N, 3]."""
        points: Array = 2.0 * (vad - self.minimum) / (self.maximum - self.minimum) - 1.0
        return points

    def denormalise(self, points: Array) -> Array:
        """The inverse of `normalise`."""
        return (points + 1) / 2 * (self.maximum - self.minimum) + self.minimum

    def assign(self, vad: Array) -> Labels:
        """The cluster of each point: the nearest centroid. [N, 3] on 1..5 to [N]."""
        return _nearest(self.normalise(vad), self.centroids)


def _nearest(points: Array, centroids: Array) -> Labels:
    distances = ((points[:, None] - centroids[None]) ** 2).sum(2)  # [N, K]
    nearest: Labels = distances.argmin(1)
    return nearest


def fit_emotion_map(lexicon: Lexicon, anchors: Anchors, anchor_weight: float) -> EmotionMap:
    """Cluster the lexicon: K-means on the scaled terms, started from the anchors (equations 20 and 21).

    The anchors are observations too, each worth `anchor_weight` average clusters of terms. A lexicon is a dictionary:
    most of its words name neutral things, and from the anchors alone K-means walks off to them (a third of the clusters
    leave their emotion's octant). The weight keeps a cluster at its emotion.
    """
    minimum, maximum = lexicon.vad.min(0), lexicon.vad.max(0)
    scaling = EmotionMap(anchors.labels, minimum, maximum, np.empty((0, 3)))
    points, starts = scaling.normalise(lexicon.vad), scaling.normalise(anchors.vad)
    weight = anchor_weight * len(points) / len(starts)
    weights = np.concatenate([np.ones(len(points)), np.full(len(starts), weight)])
    kmeans = KMeans(len(starts), init=starts, n_init=1, max_iter=1000, tol=0.0)
    kmeans.fit(np.concatenate([points, starts]), sample_weight=weights)
    return EmotionMap(anchors.labels, minimum, maximum, kmeans.cluster_centers_.astype(np.float64))


def octants_of(vad: Array) -> list[str]:
    """The octant of each point on 1..5: H where a value is above 3, otherwise L. [N, 3] to N words."""
    return ["".join("H" if value > MIDDLE_VAD else "L" for value in row) for row in vad]


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """How well the clusters stand for their emotions.

    `centroids_in_octant`: centroids in the octant of their anchor; `anchors_in_cluster`: anchors that fall into their
    own cluster; `terms_in_octant`: share of terms whose octant is their emotion's; `without_terms`: emotions that no
    term of the lexicon falls to; `inertia`: equation 21 over the terms.
    """

    centroids_in_octant: int
    anchors_in_cluster: int
    terms_in_octant: float
    without_terms: list[str]
    inertia: float


def report_clusters(emotion_map: EmotionMap, lexicon: Lexicon, anchors: Anchors) -> ClusterReport:
    """Compare the clusters with the emotions that they started from."""
    home = np.array(octants_of(anchors.vad))
    settled = np.array(octants_of(emotion_map.denormalise(emotion_map.centroids)))
    clusters = emotion_map.assign(lexicon.vad)
    counts = np.bincount(clusters, minlength=len(home))
    offsets = emotion_map.normalise(lexicon.vad) - emotion_map.centroids[clusters]
    return ClusterReport(
        centroids_in_octant=int((settled == home).sum()),
        anchors_in_cluster=int((emotion_map.assign(anchors.vad) == np.arange(len(home))).sum()),
        terms_in_octant=float((home[clusters] == np.array(octants_of(lexicon.vad))).mean()),
        without_terms=[label for label, count in zip(emotion_map.labels, counts, strict=True) if count == 0],
        inertia=float((offsets**2).sum()),
    )


# The classifier


def _block(in_channels: int, out_channels: int, pool_stride: int) -> nn.Sequential:
    """Convolution, normalisation, pooling, activation: one block of section III-D."""
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm1d(out_channels),
        nn.MaxPool1d(kernel_size=2, stride=pool_stride),
        nn.ReLU(),
    )


class EmotionClassifier(nn.Module):
    """VAD to emotion: min-max scaling (equation 20) and the CNN, with the softmax at its end."""

    minimum: Tensor
    maximum: Tensor

    def __init__(self, num_emotions: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("minimum", torch.zeros(len(VAD_DIMENSIONS)))
        self.register_buffer("maximum", torch.ones(len(VAD_DIMENSIONS)))
        self.blocks = nn.Sequential(
            _block(1, channels, pool_stride=1),  # [B, 1, 3] -> [B, C, 2]
            _block(channels, channels, pool_stride=2),  # [B, C, 2] -> [B, C, 1]
        )
        self.output = nn.Linear(channels, num_emotions)

    def forward(self, valence: Tensor, arousal_dominance: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1] and [B, 2] on 1..5 to VAD [B, 3] on 1..5 and emotion probabilities [B, K]."""
        vad = torch.cat([valence, arousal_dominance], dim=1)  # [B, 3]
        points = 2 * (vad - self.minimum) / (self.maximum - self.minimum) - 1.0
        return vad, self.logits(points).softmax(dim=1)

    def logits(self, points: Tensor) -> Tensor:
        """Points [B, 3] on -1..1 to logits [B, K]."""
        features: Tensor = self.blocks(points.unsqueeze(1)).flatten(1)  # [B, C]
        return self.output(features)


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


# Everything together


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


def save_emotion_map(trained: TrainedMap, directory: Path) -> None:
    """Write centroids and scaling, the classifier, the labels and the metrics into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    emotion_map = trained.emotion_map
    geometry = {name: getattr(emotion_map, name).tolist() for name in ("minimum", "maximum", "centroids")}
    _write_json(directory / _MAP_FILE, {"channels": trained.metrics["config"]["channels"], **geometry})
    _write_json(directory / _LABELS_FILE, list(emotion_map.labels))
    _write_json(directory / _METRICS_FILE, trained.metrics)
    save_file(trained.classifier.state_dict(), directory / _CLASSIFIER_FILE)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def load_emotion_map(directory: Path) -> EmotionMap:
    """The scaling and the clusters that `save_emotion_map` wrote. Raises FileNotFoundError naming what is missing."""
    geometry = json.loads((directory / _MAP_FILE).read_text(encoding="utf-8"))
    labels = json.loads((directory / _LABELS_FILE).read_text(encoding="utf-8"))
    return EmotionMap(tuple(labels), *(np.array(geometry[name]) for name in ("minimum", "maximum", "centroids")))


def load_emotion_classifier(directory: Path) -> EmotionClassifier:
    """The trained classifier, ready to infer. Raises FileNotFoundError naming what is missing."""
    geometry = json.loads((directory / _MAP_FILE).read_text(encoding="utf-8"))
    classifier = EmotionClassifier(len(geometry["centroids"]), geometry["channels"])
    classifier.load_state_dict(load_file(directory / _CLASSIFIER_FILE))
    return classifier.eval()


@click.command()
@click.option("--lexicon", "lexicon_path", type=click.Path(path_type=Path), required=True, help="VAD lexicon.")
@click.option("--anchors", "anchors_path", type=click.Path(path_type=Path), required=True, help="emotions.yaml.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the trained map.")
@click.option("--anchor-weight", default=MapConfig().anchor_weight, show_default=True, help="0 is plain K-means.")
@click.option("--seed", default=MapConfig().seed, show_default=True)
def main(lexicon_path: Path, anchors_path: Path, output: Path, anchor_weight: float, seed: int) -> None:
    """Cluster a VAD lexicon into the emotions, train the classifier, and save both."""
    try:
        lexicon, anchors = read_lexicon(lexicon_path), read_anchors(anchors_path)
    except LexiconError as error:
        raise click.ClickException(str(error)) from error
    trained = train_emotion_map(lexicon, anchors, MapConfig(anchor_weight=anchor_weight, seed=seed))
    source = {"lexicon": lexicon_path.name, "lexicon_sha256": hashlib.sha256(lexicon_path.read_bytes()).hexdigest()}
    trained.metrics.update(source)
    save_emotion_map(trained, output)
    click.echo(json.dumps(trained.metrics, indent=1))


if __name__ == "__main__":
    main()
