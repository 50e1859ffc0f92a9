"""The anchors of the emotions, the initial centroids of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from attune_training.config import DIMENSIONS
from attune_training.emotion_map.scale import Array

__all__ = ["Anchors", "AnchorsError", "read_anchors"]


class AnchorsError(ValueError):
    """A file of anchors cannot be read; the message names the file and what was expected."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """The emotions in class order: labels and their VAD [K, 3] on 1..5."""

    labels: tuple[str, ...]
    vad: Array


def read_anchors(path: Path) -> Anchors:
    """Read label and anchor of every entry of the knowledge base's YAML file.

    Raises:
        AnchorsError: the file is missing, or an entry is invalid.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["emotions"]
        labels = tuple(str(entry["label"]) for entry in entries)
        vad = np.array([[entry["anchor"][name] for name in DIMENSIONS] for entry in entries], np.float64)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise AnchorsError(f"{path}: needs a list 'emotions' with label and anchor: {error!r}") from error
    return Anchors(labels, vad)
