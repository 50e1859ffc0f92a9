"""The folder of a trained map: written by `save_emotion_map`, read by the exporter and the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.emotion_map.clusters import EmotionMap
from attune_training.emotion_map.fitting import TrainedMap
from attune_weights.files import write_json

__all__ = ["load_emotion_classifier", "load_emotion_map", "save_emotion_map"]

_CLASSIFIER_FILE, _MAP_FILE, _LABELS_FILE = "cnn.safetensors", "map.json", "labels.json"
METRICS_FILE, PICTURE_FILE = "metrics.json", "emotion_map.png"


def save_emotion_map(trained: TrainedMap, directory: Path) -> None:
    """Write centroids and scaling, the classifier, the labels and the metrics into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    emotion_map = trained.emotion_map
    geometry = {name: getattr(emotion_map, name).tolist() for name in ("minimum", "maximum", "centroids")}
    write_json(directory / _MAP_FILE, {"channels": trained.metrics["config"]["channels"], **geometry})
    write_json(directory / _LABELS_FILE, list(emotion_map.labels))
    write_json(directory / METRICS_FILE, trained.metrics)
    save_file(trained.classifier.state_dict(), directory / _CLASSIFIER_FILE)


def load_emotion_map(directory: Path) -> EmotionMap:
    """Return the scaling and the clusters that `save_emotion_map` wrote.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
    """
    geometry = json.loads((directory / _MAP_FILE).read_text(encoding="utf-8"))
    labels = json.loads((directory / _LABELS_FILE).read_text(encoding="utf-8"))
    return EmotionMap(tuple(labels), *(np.array(geometry[name]) for name in ("minimum", "maximum", "centroids")))


def load_emotion_classifier(directory: Path, spread: Sequence[float] = (0.0, 0.0, 0.0)) -> EmotionClassifier:
    """Return the trained classifier in evaluation mode; `spread` is the standard deviation of VAD's error.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
    """
    geometry = json.loads((directory / _MAP_FILE).read_text(encoding="utf-8"))
    classifier = EmotionClassifier(len(geometry["centroids"]), geometry["channels"], spread)
    classifier.load_state_dict(load_file(directory / _CLASSIFIER_FILE))
    return classifier.eval()
