"""MusicGen's delay pattern: which codebook holds which frame at which position.

Codebook k is `delay(k)` positions behind the first, so that it can depend on the same frame of those before it. Stereo
models interleave left and right: codebooks 2 j and 2 j + 1 have the delay j. Position 0 holds the start token alone.

Letters: K codebooks, P positions, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DelayPattern"]

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DelayPattern:
    """The pattern of `num_codebooks` codebooks for 1 or 2 audio channels; `pad` stands where no frame is."""

    num_codebooks: int
    channels: int
    pad: int

    @property
    def delays(self) -> npt.NDArray[np.int64]:
        """The delay of each codebook, [K]."""
        return np.arange(self.num_codebooks) // self.channels

    @property
    def longest_delay(self) -> int:
        """The delay of the last codebook."""
        return int(self.delays[-1])

    def steps(self, frames: int) -> int:
        """How many forward steps give `frames` whole frames, from the start token on."""
        return frames + self.longest_delay

    def valid(self, position: int, frames: int) -> npt.NDArray[np.bool_]:
        """Which codebooks hold a frame at `position` of a piece of `frames`, [K]; the others hold `pad`."""
        frame = position - 1 - self.delays
        return (frame >= 0) & (frame < frames)

    def delayed(self, codes: Tokens) -> Tokens:
        """The tokens at positions 0..F + longest delay of whole frames [K, F], `pad` where there is none."""
        frames = codes.shape[1]
        tokens = np.full((self.num_codebooks, 1 + self.steps(frames)), self.pad, np.int64)
        for codebook, delay in enumerate(self.delays):
            tokens[codebook, 1 + delay : 1 + delay + frames] = codes[codebook]
        return tokens

    def aligned(self, tokens: Tokens) -> Tokens:
        """The whole frames [K, F] in the tokens at positions 0..P - 1, [K, P]: the inverse of `delayed`."""
        frames = max(0, tokens.shape[1] - 1 - self.longest_delay)
        rows = [tokens[codebook, 1 + delay : 1 + delay + frames] for codebook, delay in enumerate(self.delays)]
        return np.stack(rows)
