"""One utterance of any corpus: audio or none, words, and what was felt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Utterance"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """A labelled utterance; valence, arousal and dominance are on 1..5.

    ``audio`` is None where the corpus has words alone. ``session`` is empty where the corpus has none.
    """

    audio: Path | None
    transcript: str
    valence: float
    arousal: float
    dominance: float
    speaker: str
    session: str = ""

    def vad(self) -> tuple[float, float, float]:
        """Return valence, arousal, dominance."""
        return self.valence, self.arousal, self.dominance
