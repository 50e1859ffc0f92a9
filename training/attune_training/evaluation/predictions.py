"""Predictions of a model for utterances, computed as the model is served.

A recording is cut at its pauses into segments of at most 8 s; its prediction is their duration-weighted mean.
Dimensions: n utterances, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attune_training.config import DIMENSIONS
from attune_training.data.audio import read_speech
from attune_training.data.batches import Collator, Example, as_int16, length_batches
from attune_training.data.utterance import Utterance
from attune_training.evaluation.segments import Segments, given_segments

__all__ = ["Inputs", "Predictions", "join", "predict"]

Inputs = Literal["both", "voice", "words"]
"""Which streams a model gets; the other one is left out (no words, or the audio masked).

Without audio the transcript is one text.
"""

_CHUNK = 512  # utterances held in memory at a time


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted and true values [n, N] on 1..5 of `utterances`; `names` are the columns.

    A true value is NaN where there is no label.
    """

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
    segments: Sequence[Segments] | None = None,
    batch_size: int = 16,
    progress: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run `model` in evaluation mode over `utterances`; `progress` is called after each of them.

    `segments` are those of each utterance; by default they are found, and the utterance's words distributed over them.

    Raises:
        ProviderError: segments have to be found, and no segmenter is installed.
        ValueError: an audio file cannot be read, or there are no utterances.
    """
    if not utterances:
        raise ValueError("there are no utterances to predict")
    segments = given_segments(utterances) if segments is None else segments
    names: tuple[str, ...] = model.config.output_names  # type: ignore[assignment,union-attr]
    predicted = [
        _predict_chunk(
            model,
            _pieces(utterances[start : start + _CHUNK], segments[start : start + _CHUNK], inputs, progress),
            collate,
            batch_size,
        )
        for start in range(0, len(utterances), _CHUNK)
    ]
    vad = np.array([utterance.vad() for utterance in utterances], np.float32)
    target = vad[:, [DIMENSIONS.index(name) for name in names]]
    return Predictions(names, tuple(utterances), np.concatenate(predicted), target)


def _pieces(
    utterances: Sequence[Utterance], segments: Sequence[Segments], inputs: Inputs, progress: Callable[[], None]
) -> list[list[Example]]:
    """Return the model's inputs for each utterance, piece by piece."""

    def read(utterance: Utterance, found: Segments) -> list[Example]:
        vad = np.asarray(utterance.vad(), np.float32)
        if utterance.audio is None:
            pieces = [Example(None, utterance.transcript, vad)]
        elif inputs == "words":
            pieces = [Example(None, " ".join(item.transcript for item in found if item.transcript), vad)]
        else:
            waveform = as_int16(read_speech(utterance.audio))
            pieces = [Example(waveform[item.start : item.end], item.transcript, vad) for item in found]
        progress()
        return [replace(piece, transcript="") if inputs == "voice" else piece for piece in pieces]

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, utterances, segments))


@torch.inference_mode()
def _predict_chunk(
    model: Any, utterances: Sequence[Sequence[Example]], collate: Collator, batch_size: int
) -> npt.NDArray[np.float32]:
    """Return the predictions [n, N] of utterances in pieces: their means, weighted by the pieces' lengths."""
    examples = [piece for pieces in utterances for piece in pieces]
    predicted = np.empty((len(examples), len(model.config.output_names)), np.float32)
    for rows in length_batches([example.size() for example in examples], batch_size):
        batch = collate([examples[row] for row in rows])
        output = model(batch.waveform, batch.num_samples, batch.input_ids, batch.attention_mask, batch.audio_present)
        predicted[rows] = output.float().numpy()
    ends = np.cumsum([len(pieces) for pieces in utterances])
    return np.stack(
        [
            np.average(predicted[end - len(pieces) : end], axis=0, weights=[max(1, piece.size()) for piece in pieces])
            for pieces, end in zip(utterances, ends, strict=True)
        ]
    ).astype(np.float32)


def join(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several models over the same utterances as those of one."""
    return Predictions(
        names=tuple(name for part in parts for name in part.names),
        utterances=parts[0].utterances,
        predicted=np.concatenate([part.predicted for part in parts], axis=1),
        target=np.concatenate([part.target for part in parts], axis=1),
    )
