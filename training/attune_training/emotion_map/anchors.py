"""The anchors of the emotions, the initial centroids of the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attune_training.config import DIMENSIONS
from attune_training.emotion_map.scale import Array
from attune_training.providers import anchors

__all__ = ["Anchors", "AnchorsError", "read_anchors"]


class AnchorsError(ValueError):
    """A file of anchors cannot be read; the message names the file and what was expected."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """The emotions in class order: labels and their VAD [K, 3] on 1..5."""

    labels: tuple[str, ...]
    vad: Array


def read_anchors(path: Path | None = None) -> Anchors:
    """Read label and anchor of every entry of a YAML file like the knowledge base's, or of the knowledge base itself.

    Raises:
        AnchorsError: the file cannot be read, or an entry is invalid.
        ProviderError: no knowledge base is installed.
    """
    try:
        found = anchors(path)
    except ValueError as error:
        raise AnchorsError(str(error)) from error
    return Anchors(tuple(found), np.array(list(found.values()), np.float64).reshape(-1, len(DIMENSIONS)))
