"""Batches of clips: which go together, and to what they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_export.bench_encoders.clip import MAX_SAMPLES, Clip

__all__ = ["Arrays", "Batching", "batches", "excess", "padded"]

Arrays = dict[str, npt.NDArray[np.generic]]
"""A model's inputs by name."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How clips are batched: `size` clips of similar length at a time.

    `bucket_s` is what lengths are rounded up to, in seconds; 0: the length of the longest in the batch; None: 8 s for
    every one. `bucket_tokens` is the same for words; 0: as many as the longest text has.
    """

    size: int = 1
    bucket_s: float | None = 0.0
    bucket_tokens: int = 0


def batches(clips: Sequence[Clip], size: int) -> list[list[int]]:
    """Return the indices of the clips in batches of similar length, longest first."""
    order = sorted(range(len(clips)), key=lambda index: -len(clips[index].waveform))
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(clips: Sequence[Clip], batching: Batching) -> Arrays:
    """Return one batch: waveform [B, T], num_samples [B, 1], input_ids and attention_mask [B, L]."""
    samples = _padded_samples(max(len(clip.waveform) for clip in clips), batching.bucket_s)
    tokens = _rounded_up(max(len(clip.input_ids) for clip in clips), batching.bucket_tokens)
    waveform = np.zeros((len(clips), samples), np.float32)
    input_ids = np.zeros((len(clips), tokens), np.int64)
    mask = np.zeros_like(input_ids)
    for row, clip in enumerate(clips):
        waveform[row, : len(clip.waveform)] = clip.waveform
        input_ids[row, : len(clip.input_ids)] = clip.input_ids
        mask[row, : len(clip.input_ids)] = 1
    num_samples = np.array([[len(clip.waveform)] for clip in clips], np.int64)
    return {"waveform": waveform, "num_samples": num_samples, "input_ids": input_ids, "attention_mask": mask}


def excess(clips: Sequence[Clip], batching: Batching) -> float:
    """Return how many samples are computed beyond those that there are, as a share of these."""
    computed = sum(
        len(rows) * _padded_samples(max(len(clips[row].waveform) for row in rows), batching.bucket_s)
        for rows in batches(clips, batching.size)
    )
    return computed / sum(len(clip.waveform) for clip in clips) - 1


def _padded_samples(longest: int, bucket_s: float | None) -> int:
    if bucket_s is None:
        return MAX_SAMPLES
    return min(MAX_SAMPLES, _rounded_up(longest, round(bucket_s * SPEECH_SAMPLE_RATE)))


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step if step else number
