"""Predictions of a model for utterances, computed as the model is served.

A recording is cut at its pauses into segments of at most 8 s; its prediction follows from theirs by the served rule.
Dimensions: n utterances, S segments of one, N outputs.
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
from attune_training.providers import BY_DURATION, overall_vad

__all__ = ["Inputs", "Predictions", "SegmentPredictions", "join", "predict", "predict_segments"]

Inputs = Literal["both", "voice", "words"]
"""Which streams a model gets; the other one is left out (no words, or the audio masked).

Without audio the transcript is one text.
"""

_CHUNK = 512  # utterances held in memory at a time


@dataclass(frozen=True, slots=True)
class SegmentPredictions:
    """Predictions on 1..5 of every segment of `utterances`: for each of them `values` [S, N] and `lengths` [S].

    Lengths are in samples, of text without audio in characters; `names` are the columns.
    """

    names: tuple[str, ...]
    utterances: tuple[Utterance, ...]
    values: tuple[npt.NDArray[np.float32], ...]
    lengths: tuple[npt.NDArray[np.int64], ...]

    def columns(self, names: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        """Return the values [S, len(names)] of these dimensions.

        Raises:
            ValueError: a dimension is not predicted.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"the model does not predict {', '.join(missing)}")
        order = [self.names.index(name) for name in names]
        return [values[:, order] for values in self.values]

    def whole(self) -> Predictions:
        """Return the predictions of the utterances, each from its segments: by the served rule, or by duration.

        The served rule asks how far a segment is from neutral in all dimensions; a model of some of them cannot tell.
        """
        rule = None if set(self.names) == set(DIMENSIONS) else BY_DURATION
        pairs = zip(self.values, self.lengths, strict=True)
        vad = np.array([utterance.vad() for utterance in self.utterances], np.float32)
        return Predictions(
            self.names,
            self.utterances,
            predicted=np.stack([overall_vad(values, lengths, rule) for values, lengths in pairs]),
            target=vad[:, [DIMENSIONS.index(name) for name in self.names]],
        )


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
) -> Predictions:
    """Return what `predict_segments` does, as a whole for each utterance."""
    return predict_segments(model, utterances, collate, inputs=inputs, segments=segments, batch_size=batch_size).whole()


def predict_segments(
    model: nn.Module,
    utterances: Sequence[Utterance],
    collate: Collator,
    *,
    inputs: Inputs = "both",
    segments: Sequence[Segments] | None = None,
    batch_size: int = 16,
    progress: Callable[[], None] = lambda: None,
) -> SegmentPredictions:
    """Run `model` in evaluation mode over `utterances`; `progress` is called after each of them.

    `segments` are those of each utterance; by default they are found, and the utterance's words distributed over them.

    Raises:
        ProviderError: segments have to be found, and no segmenter is installed.
        ValueError: an audio file cannot be read, or there are no utterances.
    """
    if not utterances:
        raise ValueError("there are no utterances to predict")
    segments = given_segments(utterances) if segments is None else segments
    values: list[npt.NDArray[np.float32]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(utterances), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pieces = _pieces(utterances[rows], segments[rows], inputs, progress)
        values += _predict_chunk(model, pieces, collate, batch_size)
        lengths += [np.array([max(1, piece.size()) for piece in found]) for found in pieces]
    names: tuple[str, ...] = model.config.output_names  # type: ignore[assignment,union-attr]
    return SegmentPredictions(names, tuple(utterances), tuple(values), tuple(lengths))


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
) -> list[npt.NDArray[np.float32]]:
    """Return the predictions [S, N] of utterances in pieces."""
    examples = [piece for pieces in utterances for piece in pieces]
    predicted = np.empty((len(examples), len(model.config.output_names)), np.float32)
    for rows in length_batches([example.size() for example in examples], batch_size):
        batch = collate([examples[row] for row in rows])
        output = model(batch.waveform, batch.num_samples, batch.input_ids, batch.attention_mask, batch.audio_present)
        predicted[rows] = output.float().numpy()
    ends = np.cumsum([len(pieces) for pieces in utterances])
    return np.split(predicted, ends[:-1])


def join(parts: Sequence[SegmentPredictions]) -> SegmentPredictions:
    """Return the predictions of several models over the same segments as those of one."""
    return SegmentPredictions(
        names=tuple(name for part in parts for name in part.names),
        utterances=parts[0].utterances,
        values=tuple(np.concatenate(values, axis=1) for values in zip(*(part.values for part in parts), strict=True)),
        lengths=parts[0].lengths,
    )
