"""What every slot of the running batch holds on the device, and one step of all of them.

The step reads and writes preallocated tensors alone and takes no decision on the host, so that it can be captured as a
CUDA graph. Requests of different lengths, settings and ages share it.

Letters: S slots in use, K codebooks, P positions, D longest delay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.musicgen.decoder import Decoder, KeyValueCache
from attune_ensemble.musicgen.pattern import DelayPattern
from attune_ensemble.musicgen.sampling import choose

__all__ = ["BatchState", "Piece"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a slot is to make: `frames` in all, from `seed`, by `sampling`."""

    frames: int
    seed: int
    sampling: SamplingSettings


class BatchState:
    """The slots. The first ones are stepped; which request sits where is the engine's business.

    `history` [slots, K, P + 1] holds the delayed tokens of each slot's window, `position` [slots] where it is in it,
    and `dropped` [slots] how many frames its window has left behind.
    """

    def __init__(self, decoder: Decoder, slots: int, positions: int, max_text: int) -> None:
        """Preallocate for `slots` requests with windows of `positions` positions and texts of `max_text` tokens."""
        shape = decoder.shape
        weight = decoder.embedding.weight
        device = weight.device
        self.decoder = decoder
        self.pattern = DelayPattern(shape.codebooks, shape.channels, shape.pad)
        self.cache = KeyValueCache(shape, slots, positions, max_text, weight.dtype, device)
        self.history = torch.full((slots, shape.codebooks, positions + 1), shape.pad, device=device)
        self.position, self.dropped, self.frames, self.seed, self.top_k = (
            torch.zeros(slots, dtype=torch.long, device=device) for _ in range(5)
        )
        self.temperature, self.top_p, self.guidance = (torch.ones(slots, device=device) for _ in range(3))
        self._delays = torch.from_numpy(self.pattern.delays).to(device)

    @property
    def slots(self) -> int:
        """How many requests fit."""
        return self.cache.slots

    @property
    def positions(self) -> int:
        """Length of a window."""
        return self.cache.positions

    def begin(self, slot: int, piece: Piece, text: Tensor) -> None:
        """Put a piece into a slot, at its beginning; `text` is [T, D]."""
        self.decoder.set_text(self.cache, slot, text)
        self.history[slot] = self.pattern.pad
        self.position[slot] = 0
        self.dropped[slot] = 0
        self.frames[slot] = piece.frames
        self.seed[slot] = piece.seed
        self.temperature[slot] = piece.sampling.temperature
        self.top_k[slot] = piece.sampling.top_k
        self.top_p[slot] = piece.sampling.top_p
        self.guidance[slot] = piece.sampling.guidance

    def step(self, slots: int, used: int) -> None:
        """Move the first `slots` slots on by one position; `used` is more than the largest of their positions."""
        position = self.position[:slots]
        rows = torch.arange(slots, device=position.device)
        tokens = self.history[rows, :, position]  # [S, K]
        logits = self.decoder.step(self.cache, tokens, position, used, self.guidance[:slots])
        chosen = choose(
            logits,
            self.temperature[:slots],
            self.top_k[:slots],
            self.top_p[:slots],
            self.seed[:slots],
            position + self.dropped[:slots],
        )
        frame = position[:, None] - self._delays[None, :]  # [S, K], of the tokens just chosen
        left = (self.frames - self.dropped)[:slots, None]
        chosen = torch.where((frame >= 0) & (frame < left), chosen, self.pattern.pad)
        self.history[rows, :, position + 1] = chosen
        position += 1

    def codes(self, slot: int, first: int, last: int) -> Tensor:
        """The codes [K, last - first] of whole frames of a slot, counted from the start of its window."""
        rows = [
            self.history[slot, codebook, 1 + delay + first : 1 + delay + last]
            for codebook, delay in enumerate(self.pattern.delays)
        ]
        return torch.stack(rows)

    def slide(self, slot: int, position: int, drop: int) -> None:
        """Forget the oldest `drop` frames of a slot at `position`, and read the rest again as the start of a window.

        The window then begins as any piece does, with the delay pattern's triangle of padding.
        """
        kept = position - drop
        shifted = self.history[slot, :, drop : position + 1].clone()  # positions 0..kept
        before_start = torch.arange(kept + 1, device=shifted.device)[None, :] < 1 + self._delays[:, None]
        self.history[slot] = self.pattern.pad
        self.history[slot, :, : kept + 1] = torch.where(before_start, self.pattern.pad, shifted)
        self.decoder.prefill(self.cache, slot, self.history[slot, :, :kept])
        self.position[slot] = kept
        self.dropped[slot] += drop

    def swap(self, first: int, second: int, used: int) -> None:
        """Exchange two slots, of which `used` positions hold anything."""
        self.cache.swap(first, second, used)
        pair, turned = [first, second], [second, first]
        for tensor in (
            self.history,
            self.position,
            self.dropped,
            self.frames,
            self.seed,
            self.top_k,
            self.temperature,
            self.top_p,
            self.guidance,
        ):
            tensor[pair] = tensor[turned]
