"""A synthetic lexicon of any size, with a realistic distribution and layout, for tests without a licensed one.

python -c "from attune_training.emotion_map.synthetic import write_lexicon; write_lexicon('lexicon.txt', 55_000)"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attune_training.emotion_map.scale import Array

__all__ = ["draw_ratings", "write_lexicon"]

# A mixture of four kinds of words: pleasant, neutral, harsh, sad. Their weights, and the mean and standard deviation of
# V, A, D on -1..1, are chosen here to resemble published lexicons: a dense neutral middle, and V and D correlated.
_SHARES = (0.35, 0.3, 0.2, 0.15)
_MEANS = ((0.35, 0.0, 0.25), (0.0, -0.2, 0.0), (-0.45, 0.2, -0.2), (-0.35, -0.15, -0.35))
_SPREADS = ((0.28, 0.33, 0.28), (0.22, 0.3, 0.28), (0.25, 0.3, 0.3), (0.25, 0.28, 0.25))


def draw_ratings(terms: int, seed: int = 0) -> Array:
    """Draw valence, arousal and dominance [terms, 3] on -1..1, rounded to three decimals as in lexicons."""
    random = np.random.default_rng(seed)
    kinds = random.choice(len(_SHARES), terms, p=_SHARES)
    ratings: Array = np.array(_MEANS)[kinds] + np.array(_SPREADS)[kinds] * random.standard_normal((terms, 3))
    return np.clip(ratings, -1.0, 1.0).round(3)


def write_lexicon(path: str | Path, terms: int, seed: int = 0) -> None:
    """Write a synthetic lexicon in the layout of NRC VAD v2.1: tab-separated, with a header, on -1..1."""
    rows = (f"term{i}\t{v:.3f}\t{a:.3f}\t{d:.3f}" for i, (v, a, d) in enumerate(draw_ratings(terms, seed)))
    Path(path).write_text("\n".join(["term\tvalence\tarousal\tdominance", *rows]) + "\n", encoding="utf-8")
