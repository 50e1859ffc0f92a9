"""From VAD and words to an emotion, as it is served: the one place where the evaluation of stories does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attune_training.emotion_choice.embedding import embed
from attune_training.emotion_choice.storage import read_vad_error
from attune_training.emotion_map.storage import load_emotion_classifier, load_emotion_map
from attune_training.evaluation.stories.measures import Answers, Array
from attune_training.providers import read_choice

__all__ = ["Chooser", "answer"]


@dataclass(frozen=True, slots=True)
class Chooser:
    """Folders of an emotion map, and of a fitted choice by VAD and words; None: the most probable one by VAD."""

    emotion_map: Path
    choice: Path | None


@torch.inference_mode()
def answer(chooser: Chooser, vad: Array, texts: Sequence[str], labels: Sequence[str]) -> Answers:
    """Return the emotions of VAD [n, 3], heard in n texts (what was written, or recognised).

    Raises:
        ValueError: there are not as many texts as rows, the emotions are others than `labels`, or a folder is damaged.
        FileNotFoundError: a folder does not hold what it should.
        ProviderError: the choice is not installed.
    """
    if len(vad) != len(texts):
        raise ValueError(f"expected a row of VAD for each text, got {len(vad)} and {len(texts)}")
    if load_emotion_map(chooser.emotion_map).labels != tuple(labels):
        raise ValueError(
            f"{chooser.emotion_map}: its emotions are not those of the knowledge base; train the map again"
        )
    points = torch.from_numpy(np.asarray(vad)).float()
    if chooser.choice is None:
        _, probabilities, _ = load_emotion_classifier(chooser.emotion_map)(points[:, :1], points[:, 1:])
        return Answers.most_probable(vad, probabilities.numpy())
    choice = read_choice(chooser.choice)
    if choice.labels != tuple(labels):
        raise ValueError(f"{chooser.choice}: its emotions are not those of the knowledge base; fit the choice again")
    classifier = load_emotion_classifier(chooser.emotion_map, read_vad_error(chooser.choice))
    _, _, expected = classifier(points[:, :1], points[:, 1:])
    return Answers.most_probable(vad, choice.probabilities(expected.numpy(), embed(texts)))
