"""A narration as a whole and its segments, by a rule for the whole.

Dimensions: S segments in order; VAD is valence, arousal and dominance on 1..5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attune_training.evaluation.stories.measures import Array
from attune_training.providers import overall_shares

__all__ = ["Course", "Whole", "wholes_of_texts"]


@dataclass(frozen=True, slots=True)
class Whole:
    """VAD [3] of all of it, the words of its segments [S], and their shares [S] in it."""

    vad: Array
    texts: tuple[str, ...]
    shares: Array


@dataclass(frozen=True, slots=True)
class Course:
    """The segments of a narration: VAD [S, 3], lengths [S] in samples at 16 kHz, and words [S]."""

    vad: npt.NDArray[np.floating]
    lengths: npt.NDArray[np.number]
    texts: tuple[str, ...]

    def whole(self, rule: str | None = None) -> Whole:
        """Return the whole by the served rule, or by `rule`.

        Raises:
            ValueError: there is no such rule.
            ProviderError: no provider of the rules is installed.
        """
        shares = overall_shares(self.vad, self.lengths, rule)
        return Whole(shares @ self.vad, self.texts, shares)


def wholes_of_texts(vad: Array, texts: Sequence[str]) -> list[Whole]:
    """Return texts that are one segment each, with their VAD [n, 3]."""
    return [Whole(row, (text,), np.ones(1)) for row, text in zip(vad, texts, strict=True)]
