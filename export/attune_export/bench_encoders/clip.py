"""One clip: all that a row's process has to know of speech."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_client.protocol.models import SPEECH_SAMPLE_RATE

__all__ = ["MAX_SAMPLES", "Clip"]

MAX_SAMPLES = int(MAX_SEGMENT_S * SPEECH_SAMPLE_RATE)
"""Samples of the longest clip, to which the paper pads every one."""

_NO_LABEL = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Clip:
    """A waveform [T] (float32, 16 kHz, at most 8 s), the token ids of its words, and V, A, D (NaN: no label)."""

    waveform: npt.NDArray[np.float32]
    input_ids: tuple[int, ...]
    vad: tuple[float, float, float] = _NO_LABEL

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / SPEECH_SAMPLE_RATE
