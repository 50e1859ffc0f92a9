"""Recordings cut as they are served: at their pauses, into segments of at most 8 s, each with its own words.

A model is evaluated on the same inputs as in the server: speech is found by the served segmenter, reached through
`attune_training.providers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from attune_training.config import SAMPLE_RATE
from attune_training.data.audio import read_speech, sound_bounds
from attune_training.data.utterance import Utterance
from attune_training.providers import FindSpeech, Transcribe, segmenter

__all__ = ["MAX_SEGMENT_S", "Segment", "Segments", "distribute_words", "given_segments", "recognised_segments"]

MAX_SEGMENT_S = 8.0
"""Longest segment that the regressors take, in seconds (paper, section III-C2)."""

_MAX_SEGMENT = round(MAX_SEGMENT_S * SAMPLE_RATE)

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Segment:
    """Samples `start` up to `end` of a recording at 16 kHz, and the words in it."""

    start: int
    end: int
    transcript: str


Segments = tuple[Segment, ...]
"""Segments of one utterance; empty where it has no audio."""


def given_segments(utterances: Sequence[Utterance], progress: Callable[[], None] = lambda: None) -> list[Segments]:
    """Cut every recording at its pauses, and distribute the corpus's words over the segments.

    Raises:
        ProviderError: no segmenter is installed.
        ValueError: an audio file cannot be read.
    """
    find_speech = segmenter() if any(utterance.audio for utterance in utterances) else None

    def cut(utterance: Utterance) -> Segments:
        segments: Segments = ()
        if utterance.audio is not None and find_speech is not None:
            segments = _with_words(_spans(read_speech(utterance.audio), find_speech), utterance.transcript)
        progress()
        return segments

    with ThreadPoolExecutor() as pool:
        return list(pool.map(cut, utterances))


def recognised_segments(
    utterances: Sequence[Utterance], transcribe: Transcribe, progress: Callable[[], None] = lambda: None
) -> list[Segments]:
    """Return the segments and words that speech recognition finds; where it finds none, the recording has no words.

    Raises:
        ProviderError: no segmenter is installed.
        ValueError: an audio file cannot be read, or an utterance has none.
    """
    find_speech, found = segmenter(), []
    for utterance in utterances:
        if utterance.audio is None:
            raise ValueError("a corpus without audio has nothing to recognise: use --transcripts given")
        waveform = read_speech(utterance.audio)
        segments = tuple(Segment(item.start, item.end, item.transcript) for item in transcribe(waveform))
        found.append(segments or _with_words(_spans(waveform, find_speech), ""))
        progress()
    return found


def _spans(waveform: Waveform, find_speech: FindSpeech) -> list[tuple[int, int]]:
    """Return the spans of speech in [T]; if none is found, all that is not silent, in equal parts."""
    return find_speech(waveform) or _equal_parts(*sound_bounds(waveform))


def _equal_parts(start: int, end: int) -> list[tuple[int, int]]:
    edges = np.linspace(start, end, max(1, -(-(end - start) // _MAX_SEGMENT)) + 1).astype(int).tolist()
    return list(pairwise(edges))


def _with_words(spans: Sequence[tuple[int, int]], transcript: str) -> Segments:
    words = distribute_words(transcript, [end - start for start, end in spans])
    return tuple(Segment(start, end, text) for (start, end), text in zip(spans, words, strict=True))


def distribute_words(transcript: str, lengths: Sequence[int]) -> list[str]:
    """Distribute words over segments of these lengths, in order, in proportion to the lengths.

    Corpora have no word timestamps.
    """
    if len(lengths) == 1:
        return [transcript]
    words = transcript.split()
    middles = (np.arange(len(words)) + 0.5) / max(1, len(words)) * sum(lengths)
    owners = np.searchsorted(np.cumsum(lengths)[:-1], middles, side="right")
    return [
        " ".join(word for word, owner in zip(words, owners, strict=True) if owner == row) for row in range(len(lengths))
    ]
