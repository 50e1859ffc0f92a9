"""What a model says about utterances, in their order.

Letters: n utterances, N dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attune_training.config import DIMENSIONS
from attune_training.data.batches import Collator, Example, length_batches, read_examples
from attune_training.data.utterance import Utterance

__all__ = ["Inputs", "Predictions", "join", "predict"]

Inputs = Literal["both", "voice", "words"]
"""What a model gets to hear: the other stream is left out (no words, or the voice masked)."""

_CHUNK = 512  # utterances held in memory at a time


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted and true values [n, N] on 1..5 of ``utterances``; ``names`` are the columns."""

    names: tuple[str, ...]
    utterances: tuple[Utterance, ...]
    predicted: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32]

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """Return the predictions [n] of one dimension."""
        return self.predicted[:, self.names.index(name)]


def predict(
    model: nn.Module,
    utterances: Sequence[Utterance],
    collate: Collator,
    *,
    inputs: Inputs = "both",
    batch_size: int = 16,
    progress: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run ``model`` in evaluation mode over ``utterances``; ``progress`` is called after each of them.

    Raises:
        ValueError: an audio file cannot be read, or there are no utterances.
    """
    if not utterances:
        raise ValueError("there are no utterances to predict")
    names: tuple[str, ...] = model.config.output_names  # type: ignore[assignment,union-attr]
    predicted = [
        _predict_chunk(model, utterances[start : start + _CHUNK], collate, inputs, batch_size, progress)
        for start in range(0, len(utterances), _CHUNK)
    ]
    vad = np.array([utterance.vad() for utterance in utterances], np.float32)
    target = vad[:, [DIMENSIONS.index(name) for name in names]]
    return Predictions(names, tuple(utterances), np.concatenate(predicted), target)


@torch.inference_mode()
def _predict_chunk(
    model: Any,
    utterances: Sequence[Utterance],
    collate: Collator,
    inputs: Inputs,
    batch_size: int,
    progress: Callable[[], None],
) -> npt.NDArray[np.float32]:
    examples = [_heard(example, inputs) for example in read_examples(utterances, progress=progress)]
    predicted = np.empty((len(examples), len(model.config.output_names)), np.float32)
    for rows in length_batches([example.size() for example in examples], batch_size):
        batch = collate([examples[row] for row in rows])
        output = model(batch.waveform, batch.num_samples, batch.input_ids, batch.attention_mask, batch.audio_present)
        predicted[rows] = output.float().numpy()
    return predicted


def _heard(example: Example, inputs: Inputs) -> Example:
    if inputs == "voice":
        return replace(example, transcript="")
    return replace(example, waveform=None) if inputs == "words" else example


def join(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several models over the same utterances as those of one."""
    return Predictions(
        names=tuple(name for part in parts for name in part.names),
        utterances=parts[0].utterances,
        predicted=np.concatenate([part.predicted for part in parts], axis=1),
        target=np.concatenate([part.target for part in parts], axis=1),
    )
