"""From the segments of a narration to the whole: the one rule, for serving and for training's evaluation.

Every rule gives each segment a share, and the whole is the mean of the segments by their shares. Dimensions: S segments
in order, N dimensions of emotion (valence, arousal, dominance, or some of them).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from attune_client.protocol.bounds import MAX_SEGMENT_S, NEUTRAL_VAD
from attune_client.protocol.models import SPEECH_SAMPLE_RATE

__all__ = ["SERVED", "OverallRule", "overall_vad", "shares"]


class OverallRule(StrEnum):
    """Which segments decide what is felt on the whole."""

    DURATION = "duration"
    """All, each as long as it lasts."""

    END = "end"
    """Where it ended: the last 8 s of speech, the length of a full segment, so that a last scrap does not decide."""

    STRONGEST = "strongest"
    """The one segment that is furthest from neutral; of several, the last."""

    MIXTURE = "mixture"
    """All, by length, and the more the later they are and the further from neutral."""


SERVED = OverallRule.MIXTURE
"""What the server answers with."""

END_S = MAX_SEGMENT_S
HALF_LIFE_S = 12.0
"""In a mixture, a moment counts half as much as one that is so many seconds of speech later."""

Array = npt.NDArray[np.float64]


def overall_vad(vad: npt.ArrayLike, num_samples: npt.ArrayLike, rule: OverallRule = SERVED) -> npt.NDArray[np.float32]:
    """Return the values [N] of the whole, from those of its segments [S, N] on 1..5 and their lengths [S] at 16 kHz.

    Rules that look at how far a segment is from neutral see the dimensions that are given: give all three.

    Raises:
        ValueError: there are no segments, or not as many lengths as segments.
    """
    values = np.asarray(vad, np.float64)
    return np.average(values, axis=0, weights=shares(values, num_samples, rule)).astype(np.float32)


def shares(vad: npt.ArrayLike, num_samples: npt.ArrayLike, rule: OverallRule = SERVED) -> Array:
    """Return how much each segment counts, [S], with the sum 1; arguments and errors are those of `overall_vad`."""
    values, seconds = np.asarray(vad, np.float64), np.asarray(num_samples, np.float64) / SPEECH_SAMPLE_RATE
    if values.ndim != 2 or not len(values) or seconds.shape != values.shape[:1] or not (seconds > 0).all():
        raise ValueError(f"expected values [S, N] and lengths [S] above 0, got {values.shape} and {seconds.shape}")
    weights = _weights(values, seconds, rule)
    return weights / weights.sum()


def _weights(values: Array, seconds: Array, rule: OverallRule) -> Array:
    to_the_end = np.cumsum(seconds[::-1])[::-1]  # seconds of speech from a segment's start to the end of all
    after = to_the_end - seconds
    if rule is OverallRule.DURATION:
        return seconds
    if rule is OverallRule.END:
        return np.clip(END_S - after, 0.0, seconds)
    strength = np.linalg.norm(values - NEUTRAL_VAD, axis=1)
    if rule is OverallRule.STRONGEST:
        last = len(values) - 1 - int(strength[::-1].argmax())
        return np.eye(len(values))[last]
    lateness = 2 ** (-after / HALF_LIFE_S) - 2 ** (-to_the_end / HALF_LIFE_S)  # the integral over the segment
    return lateness * np.maximum(strength, 1e-6)
