"""From VAD and words to an emotion, as it is served: the one place where the evaluation of stories does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attune_training.emotion_choice.embedding import embed
from attune_training.emotion_choice.storage import read_vad_error
from attune_training.emotion_map.storage import load_emotion_classifier, load_emotion_map
from attune_training.evaluation.stories.measures import Answers, Array
from attune_training.evaluation.stories.wholes import Whole
from attune_training.providers import read_choice

__all__ = ["Chooser", "answer"]


@dataclass(frozen=True, slots=True)
class Chooser:
    """Folders of an emotion map, and of a fitted choice by VAD and words; None: the most probable one by VAD."""

    emotion_map: Path
    choice: Path | None


@torch.inference_mode()
def answer(chooser: Chooser, wholes: Sequence[Whole], labels: Sequence[str]) -> Answers:
    """Return the emotions of n narrations as a whole, from what was written, or heard and recognised.

    Raises:
        ValueError: the emotions are others than `labels`, or a folder is damaged.
        FileNotFoundError: a folder does not hold what it should.
        ProviderError: the choice is not installed.
    """
    if load_emotion_map(chooser.emotion_map).labels != tuple(labels):
        raise ValueError(
            f"{chooser.emotion_map}: its emotions are not those of the knowledge base; train the map again"
        )
    vad = np.stack([whole.vad for whole in wholes]).astype(np.float64)
    points = torch.from_numpy(vad).float()
    if chooser.choice is None:
        _, probabilities, _ = load_emotion_classifier(chooser.emotion_map)(points[:, :1], points[:, 1:])
        return Answers.most_probable(vad, probabilities.numpy())
    choice = read_choice(chooser.choice)
    if choice.labels != tuple(labels):
        raise ValueError(f"{chooser.choice}: its emotions are not those of the knowledge base; fit the choice again")
    classifier = load_emotion_classifier(chooser.emotion_map, read_vad_error(chooser.choice))
    _, _, expected = classifier(points[:, :1], points[:, 1:])
    return Answers.most_probable(vad, _by_vad_and_words(choice, expected.numpy(), wholes))


def _by_vad_and_words(choice: Any, from_vad: npt.NDArray[np.float32], wholes: Sequence[Whole]) -> Array:
    """Return the probabilities [n, K] of wholes, from those by VAD [n, K]."""
    embeddings = embed([text for whole in wholes for text in whole.texts])
    segments = np.split(embeddings, np.cumsum([len(whole.texts) for whole in wholes])[:-1])
    rows = zip(from_vad, segments, wholes, strict=True)
    return np.stack([choice.whole_probabilities(row, words, whole.shares) for row, words, whole in rows])
