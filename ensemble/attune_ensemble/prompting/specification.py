"""From an emotion and its VAD to a musical specification (paper, section III-F)."""

from __future__ import annotations

import numpy as np

from attune_client.protocol.music_spec import DYNAMICS, MusicSpec
from attune_ensemble.prompting.knowledge import Emotion

__all__ = ["Vad", "music_spec"]

Vad = tuple[float, float, float]

TEMPO_AROUSAL_SPAN = 1.0
"""Deviation of arousal from an emotion's anchor at which the end of its tempo range is reached."""

DYNAMICS_AROUSAL_STEP = 0.75
"""Deviation of arousal from an emotion's anchor at which the music is one dynamic level softer or louder."""


def music_spec(emotion: Emotion, vad: Vad | None) -> MusicSpec:
    """Return the emotion's musical specification, modified by arousal.

    At the anchor's arousal the tempo is the middle of the emotion's range; it increases with arousal within the range.
    Much lower or higher arousal makes the music one dynamic level softer or louder. Without VAD, the anchor's is used.
    """
    excess = 0.0 if vad is None else vad[1] - emotion.anchor[1]
    share = float(np.interp(excess, (-TEMPO_AROUSAL_SPAN, TEMPO_AROUSAL_SPAN), (0.0, 1.0)))
    tempo_bpm = emotion.tempo_low_bpm + share * (emotion.tempo_high_bpm - emotion.tempo_low_bpm)
    return MusicSpec(
        tempo_bpm=round(tempo_bpm, 1),
        mode=emotion.mode,
        tonic=emotion.tonic,
        instruments=emotion.instruments,
        dynamics=_shifted_dynamics(emotion.dynamics, excess),
    )


def _shifted_dynamics(dynamics: str, excess: float) -> str:
    shift = (excess >= DYNAMICS_AROUSAL_STEP) - (excess <= -DYNAMICS_AROUSAL_STEP)
    level = DYNAMICS.index(dynamics) + shift
    return DYNAMICS[min(max(level, 0), len(DYNAMICS) - 1)]
