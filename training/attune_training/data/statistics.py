"""What a corpus holds: counts, and means and spreads of its targets, for a model card.

Of a test part only counts are told: its targets are looked at in the last test, and nowhere before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attune_training.config import DIMENSIONS
from attune_training.data.splits import Split
from attune_training.data.utterance import SPLIT_NAMES, Utterance

__all__ = ["PartStatistics", "Spread", "describe", "markdown"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How many utterances have a label of a dimension; mean and standard deviation on 1..5, None of a test part.

    They are None as well where there is no label.
    """

    labels: int
    mean: float | None
    deviation: float | None


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """One part of a corpus; `speakers` (or writers) is 0 where none is known, `dimensions` are by name."""

    part: str
    utterances: int
    speakers: int
    dimensions: dict[str, Spread]


def describe(split: Split) -> list[PartStatistics]:
    """Return the statistics of each part, in order."""
    return [_part(name, getattr(split, name)) for name in SPLIT_NAMES]


def _part(name: str, utterances: Sequence[Utterance]) -> PartStatistics:
    speakers = {utterance.speaker for utterance in utterances} - {""}
    vad = np.array([utterance.vad() for utterance in utterances]).reshape(-1, len(DIMENSIONS))  # [n, 3]
    dimensions = {dimension: _spread(vad[:, column], name != "test") for column, dimension in enumerate(DIMENSIONS)}
    return PartStatistics(name, len(utterances), len(speakers), dimensions)


def _spread(values: np.ndarray, may_look: bool) -> Spread:
    known = values[~np.isnan(values)]
    if not may_look or not known.size:
        return Spread(known.size, None, None)
    return Spread(known.size, float(known.mean()), float(known.std()))


def markdown(corpora: Sequence[tuple[str, Sequence[PartStatistics]]]) -> str:
    """Return one table of several corpora by their names: mean and deviation of each dimension, and its labels.

    Where every utterance of a part has a label, their number is not repeated.
    """
    lines = [
        f"| corpus | part | utterances | speakers | {' | '.join(DIMENSIONS)} |",
        "|---|---|---:|---:|" + "---|" * len(DIMENSIONS),
    ]
    for name, parts in corpora:
        for part in parts:
            cells = [_cell(spread, part) for spread in part.dimensions.values()]
            count = f"{part.utterances:,} | {part.speakers or '?'}"
            lines.append(f"| {name} | {part.part} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(spread: Spread, part: PartStatistics) -> str:
    if not spread.labels:
        return "no labels"
    labels = "" if spread.labels == part.utterances else f" ({spread.labels:,})"
    return f"{_numbers(spread)}{labels}"


def _numbers(spread: Spread) -> str:
    if spread.mean is None or spread.deviation is None:
        return "not looked at"
    return f"{spread.mean:.2f} ± {spread.deviation:.2f}"
