"""MusicGen's delay pattern: which codebook holds which frame at which position.

Codebook k is `delay(k)` positions behind the first, so that it can depend on the same frame of those before it. Stereo
models interleave left and right: codebooks 2 j and 2 j + 1 have the delay j. Position 0 holds the start token alone.

Letters: K codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DelayPattern"]


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
