"""Which descriptions are gentle: for somebody whose words speak of a crisis, whatever their VAD says.

It follows from the tempo and the dynamics that the knowledge base gives to each description: soft, and even at its
fastest no faster than a heart at rest. What a description's mode or title suggests does not count: the music of grief
is gentle, that of hope, which is louder and quicker, is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attune_client.protocol.music_spec import DYNAMICS
from attune_ensemble.prompting.knowledge import Emotion, KnowledgeError
from attune_ensemble.prompting.specification import Vad

__all__ = ["MAX_GENTLE_BPM", "MAX_GENTLE_DYNAMICS", "gentle_emotions", "nearest_emotion"]

MAX_GENTLE_BPM = 72.0
"""The highest end of a gentle description's range of tempi, in beats per minute."""

MAX_GENTLE_DYNAMICS = "p"
"""The loudest dynamics of a gentle description."""


def gentle_emotions(emotions: Iterable[Emotion]) -> tuple[Emotion, ...]:
    """The emotions whose descriptions are gentle; `KnowledgeError` where none is."""
    found = tuple(emotion for emotion in emotions if _is_gentle(emotion))
    if not found:
        raise KnowledgeError(
            f"no description is gentle: at most {MAX_GENTLE_DYNAMICS}, and at most {MAX_GENTLE_BPM:g} bpm throughout"
        )
    return found


def _is_gentle(emotion: Emotion) -> bool:
    soft = DYNAMICS.index(emotion.dynamics) <= DYNAMICS.index(MAX_GENTLE_DYNAMICS)
    return soft and emotion.tempo_high_bpm <= MAX_GENTLE_BPM


def nearest_emotion(emotions: Sequence[Emotion], vad: Vad) -> Emotion:
    """The emotion whose anchor lies nearest to `vad`, by Euclidean distance; the first of several as near."""
    return min(emotions, key=lambda emotion: math.dist(emotion.anchor, vad))
