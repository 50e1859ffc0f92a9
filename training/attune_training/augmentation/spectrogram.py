"""Light masking of the audio front end's output (SpecAugment)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mask_spectrogram"]


def mask_spectrogram(inputs: Tensor, time_masks: int = 2, channel_masks: int = 2, share: float = 0.1) -> Tensor:
    """Return a copy of inputs [B, C, M] in which random spans of time and of channels are zero.

    Masks are drawn for each row; each covers up to the fraction `share` of its axis.
    """
    keep = torch.ones_like(inputs, dtype=torch.bool)
    for _ in range(time_masks):
        keep &= ~_random_span(inputs.shape[0], inputs.shape[2], share, inputs.device)[:, None, :]
    for _ in range(channel_masks):
        keep &= ~_random_span(inputs.shape[0], inputs.shape[1], share, inputs.device)[:, :, None]
    return inputs * keep


def _random_span(rows: int, size: int, share: float, device: torch.device) -> Tensor:
    """Return [rows, size] on `device`, true in one random span of each row."""
    length = torch.rand(rows, 1, device=device) * share * size
    start = torch.rand(rows, 1, device=device) * (size - length)
    position = torch.arange(size, device=device)[None, :]
    return (position >= start) & (position < start + length)
