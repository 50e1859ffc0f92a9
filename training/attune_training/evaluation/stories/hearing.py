"""What is heard in recordings of texts: found, recognised and predicted as it is served.

Dimensions: n recordings, S segments of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.data.utterance import Utterance
from attune_training.evaluation.command import predict_all_segments, progress_bar
from attune_training.evaluation.segments import recognised_segments
from attune_training.evaluation.stories.measures import Array
from attune_training.evaluation.words import WordErrors, word_errors
from attune_training.providers import Transcribe, overall_vad
from attune_training.synthesis.texts import Recording

__all__ = ["Heard", "as_utterances", "hear", "whole_vad"]


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard in n recordings: of each its words, and its segments, VAD [S, 3] and lengths [S] in samples."""

    transcripts: tuple[str, ...]
    segment_vad: tuple[npt.NDArray[np.float32], ...]
    lengths: tuple[npt.NDArray[np.int64], ...]
    errors: WordErrors

    def vad(self, rule: str | None = None) -> Array:
        """Return VAD [n, 3] of the recordings as a whole, by the served rule unless another is named."""
        return whole_vad(self.segment_vad, self.lengths, rule)


def hear(model: Path, recordings: Sequence[Recording], transcribe: Transcribe) -> Heard:
    """Return what a saved model hears from voice and recognised words, segment by segment.

    Raises:
        ValueError: a recording cannot be read, or the folder holds no model of all three dimensions.
        ProviderError: no segmenter is installed, or the towers' weights cannot be fetched.
    """
    utterances = as_utterances(recordings)
    with progress_bar("recognising speech", len(utterances)) as advance:
        segments = recognised_segments(utterances, transcribe, advance)
    found = predict_all_segments(model, utterances, "both", segments)
    transcripts = tuple(" ".join(item.transcript for item in cut if item.transcript) for cut in segments)
    errors = word_errors([recording.text for recording in recordings], transcripts)
    return Heard(transcripts, tuple(found.columns(DIMENSIONS)), found.lengths, errors)


def as_utterances(recordings: Sequence[Recording]) -> list[Utterance]:
    """Return the recordings as utterances, with labels that nothing reads."""
    unknown = (NEUTRAL_VAD,) * 3
    return [Utterance(item.path, item.text, *unknown, speaker=item.voice) for item in recordings]


def whole_vad(segment_vad: Sequence[npt.ArrayLike], lengths: Sequence[npt.ArrayLike], rule: str | None = None) -> Array:
    """Return VAD [n, 3] of n wholes from VAD [S, 3] and lengths [S] of their segments, by the served rule or `rule`.

    Raises:
        ValueError: there is no such rule.
    """
    wholes = [overall_vad(vad, samples, rule) for vad, samples in zip(segment_vad, lengths, strict=True)]
    return np.stack(wholes).astype(np.float64)
