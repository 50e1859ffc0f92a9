"""One utterance of any corpus: optional audio, transcript and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from attune_training.config import DIMENSIONS
from attune_training.data.audio import AudioSource

__all__ = ["SPLIT_NAMES", "Utterance"]

SPLIT_NAMES = ("train", "validation", "test")
"""The parts of a split, in order."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A labelled utterance; valence, arousal and dominance are on 1..5, NaN where the corpus has no label of one.

    `audio` is None where the corpus has words alone. `speaker` and `session` are empty where none is known.
    `category` is the emotion acted or annotated, in lower case, or empty. `split` is the part that the corpus
    itself puts the utterance in, one of `SPLIT_NAMES`, or empty. `form` is the kind of text where a corpus has
    several (`words`: a list of feeling words), or empty. `agreement` is the share of listeners who heard the category
    that was asked for; None where nobody was asked.
    """

    audio: AudioSource | None
    transcript: str
    valence: float
    arousal: float
    dominance: float
    speaker: str
    session: str = ""
    category: str = ""
    split: str = ""
    form: str = ""
    agreement: float | None = None

    def vad(self) -> tuple[float, float, float]:
        """Return valence, arousal, dominance."""
        return self.valence, self.arousal, self.dominance

    def is_labelled(self, names: Iterable[str] = DIMENSIONS) -> bool:
        """Tell whether any of the dimensions named has a label."""
        return any(not math.isnan(getattr(self, name)) for name in names)
