"""Cutting a narration at its pauses into segments that the regressors can take."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_ensemble.speech.audio import Waveform

BUCKET_S = 1.0
"""Waveforms are padded to a multiple of this, so that the dynamic batcher meets few different shapes."""

MAX_PAUSE_S = 0.8
"""Stretches of speech closer than this are one segment, as long as it stays short enough."""

_BUCKET = round(BUCKET_S * SPEECH_SAMPLE_RATE)
_MAX_SEGMENT = round(MAX_SEGMENT_S * SPEECH_SAMPLE_RATE)
_MAX_PAUSE = round(MAX_PAUSE_S * SPEECH_SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a waveform: samples `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def start_s(self) -> float:
        """Where it starts, in seconds."""
        return self.start / SPEECH_SAMPLE_RATE

    @property
    def end_s(self) -> float:
        """Where it ends, in seconds."""
        return self.end / SPEECH_SAMPLE_RATE


def pack(speech: list[Span]) -> list[Span]:
    """Join neighbouring stretches of speech into segments of at most 8 s, cutting at the pauses.

    A stretch that is itself longer is cut into equal parts: nothing is left out.
    """
    segments: list[Span] = []
    for stretch in speech:
        for part in _cut(stretch):
            last = segments[-1] if segments else None
            if last and part.start - last.end <= _MAX_PAUSE and part.end - last.start <= _MAX_SEGMENT:
                segments[-1] = Span(last.start, part.end)
            else:
                segments.append(part)
    return segments


def _cut(stretch: Span) -> list[Span]:
    count = -(-(stretch.end - stretch.start) // _MAX_SEGMENT)
    edges = np.linspace(stretch.start, stretch.end, count + 1).astype(int).tolist()
    return [Span(start, end) for start, end in pairwise(edges)]


def stack(waveform: Waveform, segments: list[Span]) -> Waveform:
    """The segments as rows [S, T] of one array, zero-padded to the length bucket of the longest."""
    rows = np.zeros((len(segments), bucket_length(max(s.end - s.start for s in segments))), np.float32)
    for row, segment in zip(rows, segments, strict=True):
        row[: segment.end - segment.start] = waveform[segment.start : segment.end]
    return rows


def bucket_length(num_samples: int) -> int:
    """The length in samples to which a waveform of `num_samples` is padded."""
    return max(-(-num_samples // _BUCKET), 1) * _BUCKET
