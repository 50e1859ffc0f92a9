"""What every slot of the running batch holds on the device, and one step of all of them.

The step reads and writes preallocated tensors alone and takes no decision on the host, so that it can be captured as a
CUDA graph. Requests of different lengths, settings and ages share it. A graph is of a fixed number of rows, often of
more than there are slots to step: the rest are computed and leave no trace (`run`).

Letters: S slots in use or rows, K codebooks, P positions, D longest delay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen.decoder import Decoder, KeyValueCache, exchange
from attune_ensemble.music.musicgen.pattern import DelayPattern
from attune_ensemble.music.musicgen.sampling import choose

__all__ = ["BatchState", "Piece"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a slot is to make: `frames` in all, from `seed`, by `sampling`."""

    frames: int
    seed: int
    sampling: SamplingSettings


class BatchState:
    """The slots. The first ones are stepped; which request sits where is the engine's business.

    `history` [slots, K, P + 2] holds the delayed tokens of each slot's window, `position` [slots] where it is in it,
    and `dropped` [slots] how many frames its window has left behind. `running` [] is how many slots, of those in front,
    a step moves on. The last column of `history`, as the last position of the cache, is for rows that do not run.
    """

    def __init__(self, decoder: Decoder, slots: int, positions: int, max_text: int) -> None:
        """Preallocate for `slots` requests with windows of `positions` positions and texts of `max_text` tokens."""
        shape = decoder.shape
        weight = decoder.embedding.weight
        device = weight.device
        self.decoder = decoder
        self.pattern = DelayPattern(shape.codebooks, shape.channels, shape.pad)
        self.cache = KeyValueCache(shape, slots, positions, max_text, weight.dtype, device)
        self.history = torch.full((slots, shape.codebooks, positions + 2), shape.pad, device=device)
        self.position, self.dropped, self.frames, self.seed, self.top_k = (
            torch.zeros(slots, dtype=torch.long, device=device) for _ in range(5)
        )
        self.temperature, self.top_p, self.guidance = (torch.ones(slots, device=device) for _ in range(3))
        self.running = torch.zeros((), dtype=torch.long, device=device)
        self._running = 0
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
        tokens = self._next_tokens(position, used)
        self.history[torch.arange(slots, device=position.device), :, position + 1] = tokens
        position += 1

    def run(self, slots: int) -> None:
        """Let `step_rows` move the first `slots` slots from now on."""
        if slots != self._running:
            self.running.fill_(slots)
            self._running = slots

    def step_rows(self, rows: int, used: int) -> None:
        """Step the first `rows` rows, of which `running` move on; `used` is more than the largest of their positions.

        What lies behind them may be a slot that waits, at the last position even: it is computed as if at its first
        position, and what comes of it goes where nobody reads.
        """
        row = torch.arange(rows, device=self.position.device)
        runs = row < self.running
        position = torch.where(runs, self.position[:rows], 0)
        written = torch.where(runs, position, self.positions)
        self.history[row, :, written + 1] = self._next_tokens(position, used, written)
        self.position[:rows] += runs

    def _next_tokens(self, position: Tensor, used: int, written: Tensor | None = None) -> Tensor:
        """Tokens [S, K] that follow those at `position` [S], of the first S slots; `written` as in `Decoder.step`."""
        rows = len(position)
        tokens = self.history[torch.arange(rows, device=position.device), :, position]  # [S, K]
        logits = self.decoder.step(self.cache, tokens, position, used, self.guidance[:rows], written)
        chosen = choose(
            logits,
            self.temperature[:rows],
            self.top_k[:rows],
            self.top_p[:rows],
            self.seed[:rows],
            position + self.dropped[:rows],
        )
        frame = position[:, None] - self._delays[None, :]  # [S, K], of the tokens just chosen
        left = (self.frames - self.dropped)[:rows, None]
        return torch.where((frame >= 0) & (frame < left), chosen, self.pattern.pad)

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
            exchange(tensor, 0, first, second)
