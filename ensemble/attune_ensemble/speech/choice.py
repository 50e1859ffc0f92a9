"""Which emotion it is, from what voice and words say of VAD and from the words' own meaning.

VAD decides the region, as in the paper: the emotion classifier's probabilities, averaged over how wrong VAD may be.
Within it the words decide: probabilities from a linear layer over the sentence embedding. The two are multiplied, each
with an exponent that was fitted, with all else in here, by `attune train emotion-choice`.

Letters: N texts, S segments of a narration, K emotions, D width of a sentence embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "BY_VAD",
    "BY_VAD_AND_WORDS",
    "CHOICE_FILE",
    "WORDS_FILE",
    "ChoiceError",
    "EmotionChoice",
    "choice_named",
    "combined",
    "read_choice",
]

BY_VAD, BY_VAD_AND_WORDS = "vad", "vad_and_words"
"""The ways to choose an emotion, as settings name them; the first is the paper's."""

CHOICE_FILE, WORDS_FILE = "choice.json", "words.safetensors"

Array = npt.NDArray[np.float32]

_SMALLEST = 1e-9  # of a probability, so that no emotion is ruled out by one side alone


class ChoiceError(ValueError):
    """The files of a choice of emotions are missing or do not fit; the message says which."""


@dataclass(frozen=True, slots=True)
class EmotionChoice:
    """A fitted choice.

    `weights` [K, D] and `bias` [K] are the linear layer over the sentence embedding; `vad_exponent` and
    `words_exponent`, both at least 0, say how much each side counts. `unsure_below` is the probability of the chosen
    emotion below which an answer is unsure.
    """

    labels: tuple[str, ...]
    weights: Array
    bias: Array
    vad_exponent: float
    words_exponent: float
    unsure_below: float

    def words_probabilities(self, embeddings: Array) -> Array:
        """Return the probabilities [N, K] by the words alone, of sentence embeddings [N, D] of unit length."""
        return _softmax(embeddings @ self.weights.T + self.bias)

    def probabilities(self, from_vad: Array, embeddings: Array) -> Array:
        """Return the probabilities [N, K] by both sides.

        A row of `embeddings` [N, D] that is zero stands for a text without words: `from_vad` [N, K] decides alone.
        """
        has_words = np.any(embeddings, axis=1, keepdims=True)  # [N, 1]
        joint = combined(from_vad, self.words_probabilities(embeddings), self.vad_exponent, self.words_exponent)
        alone = combined(from_vad, np.ones_like(from_vad), self.vad_exponent, 0.0)
        return np.where(has_words, joint, alone)

    def whole_probabilities(self, from_vad: Array, embeddings: Array, shares: npt.ArrayLike) -> Array:
        """Return the probabilities [K] of a narration as a whole.

        `from_vad` [K] is of its VAD as a whole. Its words are those of its segments, `embeddings` [S, D], zero where
        there are none: the mean of their log probabilities by the segments' `shares` [S] in the whole, of sum 1. A
        segment without words says nothing, so that the words count as much as what has words counts in the whole. Of
        words that are embedded together, only as many as the sentence encoder reads would count, and the first as much
        as the last.
        """
        weights = np.asarray(shares, np.float64) * np.any(embeddings, axis=1)
        log_words = np.log(np.maximum(self.words_probabilities(embeddings), _SMALLEST))
        from_words = np.exp(weights @ log_words).astype(np.float32)
        return combined(from_vad[None], from_words[None], self.vad_exponent, self.words_exponent)[0]


def combined(from_vad: Array, from_words: Array, vad_exponent: float, words_exponent: float) -> Array:
    """Return the product of two tables of probabilities [N, K], each to its exponent, scaled to a sum of 1."""
    logits = vad_exponent * np.log(np.maximum(from_vad, _SMALLEST))
    logits = logits + words_exponent * np.log(np.maximum(from_words, _SMALLEST))
    return _softmax(logits)


def choice_named(name: str, folder: Path, labels: Sequence[str]) -> EmotionChoice | None:
    """Return the choice that a setting names, read from `folder`; None for the paper's way.

    Raises:
        ChoiceError: there is no such way, or the folder holds none, or one of other emotions.
    """
    if name == BY_VAD:
        return None
    if name != BY_VAD_AND_WORDS:
        raise ChoiceError(f"emotion_choice {name!r} is neither {BY_VAD} nor {BY_VAD_AND_WORDS}")
    choice = read_choice(folder)
    if choice.labels != tuple(labels):
        raise ChoiceError(f"{folder}: its emotions are not those of the knowledge base; fit the choice again")
    return choice


def read_choice(folder: Path) -> EmotionChoice:
    """Return the choice that `attune train emotion-choice` wrote into `folder`.

    Raises:
        ChoiceError: a file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        record = json.loads((folder / CHOICE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WORDS_FILE)
        choice = EmotionChoice(
            tuple(record["labels"]),
            tensors["weights"].astype(np.float32),
            tensors["bias"].astype(np.float32),
            float(record["vad_exponent"]),
            float(record["words_exponent"]),
            float(record["unsure_below"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ChoiceError(f"{folder} holds no choice of emotions: {error}") from error
    if choice.weights.shape[0] != len(choice.labels) or choice.bias.shape != (len(choice.labels),):
        raise ChoiceError(f"{folder}: {len(choice.labels)} emotions do not fit weights {choice.weights.shape}")
    return choice


def _softmax(logits: npt.NDArray[np.floating]) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
