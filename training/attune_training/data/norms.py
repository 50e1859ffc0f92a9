"""What a named emotion means on 1..5: the Glasgow Norms' means of the category's own words (Scott et al. 2019; CC BY).

A category stands for its noun and for the adjective of somebody who feels it, averaged, as far as the norms have them;
where they have neither, for a verb (admire, care, realize), and disapproval, of which they have no form, for criticism
and displeased. `category_norms.json` holds these words' numbers and where they are from.

**Surprise has no valence here.** The word is rated as pleasant (7.1 of 9); the category of the corpora holds shocks as
well as gifts, so it says nothing of valence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from importlib import resources

from attune_training.data.targets import VAD, away_from, mean_vad, rescaled

__all__ = ["NEUTRAL", "category_vad", "category_words", "felt_vad"]

NEUTRAL = "neutral"
"""The category from which strength moves a target away; it is also what a text without any emotion has."""

_WITHOUT_VALENCE = ("surprise",)
_LOW, _HIGH = 1.0, 9.0


@cache
def category_words() -> dict[str, dict[str, VAD]]:
    """Return each category's words with their published means of valence, arousal and dominance, on 1..9."""
    file = resources.files("attune_training.data").joinpath("category_norms.json")
    categories = json.loads(file.read_text(encoding="utf-8"))["categories"]
    return {name: {word: tuple(means) for word, means in words.items()} for name, words in categories.items()}


@cache
def category_vad(category: str) -> VAD:
    """Return the category's point on 1..5: the mean of its words; the valence of surprise is NaN.

    Raises:
        KeyError: the category has no norms.
    """
    words = category_words()[category].values()
    valence, arousal, dominance = mean_vad((_on_our_scale(means), 1.0) for means in words)
    return math.nan if category in _WITHOUT_VALENCE else valence, arousal, dominance


def felt_vad(strengths: Iterable[tuple[str, float]]) -> VAD:
    """Return the target of several categories with their strengths; 1 is the category's own point.

    Strength moves each category's point along the line from neutral, and each weighs as much as it is strong, so that
    a trace of a second emotion does not halve a strong first one. Categories of one strength are averaged. Without
    any, or with strengths of 0 alone, it is neutral.

    Raises:
        KeyError: a category has no norms.
    """
    felt = [(category, strength) for category, strength in strengths if strength > 0]
    neutral = category_vad(NEUTRAL)
    if not felt:
        return neutral
    return mean_vad((away_from(neutral, category_vad(category), strength), strength) for category, strength in felt)


def _on_our_scale(means: VAD) -> VAD:
    valence, arousal, dominance = (rescaled(mean, _LOW, _HIGH) for mean in means)
    return valence, arousal, dominance
