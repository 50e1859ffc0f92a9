"""One utterance of any corpus: optional audio, transcript and labels."""

from __future__ import annotations

from dataclasses import dataclass

from attune_training.data.audio import AudioSource

__all__ = ["SPLIT_NAMES", "Utterance"]

SPLIT_NAMES = ("train", "validation", "test")
"""The parts of a split, in order."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A labelled utterance; valence, arousal and dominance are on 1..5.

    `audio` is None for a text corpus. `speaker` and `session` are empty where unknown.
    `category` is the emotion acted or annotated, in lower case, or empty. `split` is the part of the corpus's
    own split, one of `SPLIT_NAMES`, or empty.
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

    def vad(self) -> tuple[float, float, float]:
        """Return valence, arousal, dominance."""
        return self.valence, self.arousal, self.dominance
