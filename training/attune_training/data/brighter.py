"""BRIGHTER, English, track B: short texts with five emotions, each 0 to 3 (Muhammad et al. 2025; CC BY 4.0).

**Targets are derived**: a moderate emotion (2) is at its category's norm (`attune_training.data.norms`), a slight
one (1) half as far from neutral, a strong one (3) half as far again; several weigh as they are strong. A text with none
of the five is taken as neutral. Surprise alone has no valence. Writers are not known: the split is the corpus's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attune_training.data.norms import NEUTRAL, felt_vad
from attune_training.data.rows import CorpusError, Problem, Row
from attune_training.data.tables import labels, part_tables, table_rows

__all__ = ["EMOTIONS", "NOTE", "read_rows"]

NOTE = "words alone; targets derived from categories and intensity by the Glasgow Norms, surprise has no valence"

EMOTIONS = ("anger", "fear", "joy", "sadness", "surprise")

_INTENSITIES = {"0": 0.0, "1": 0.5, "2": 1.0, "3": 1.5}


def read_rows(folder: Path) -> Iterator[Row | Problem]:
    """Yield the texts of train.csv, dev.csv and test.csv.

    Raises:
        CorpusError: the folder does not hold them.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not BRIGHTER: a folder with train.csv, dev.csv and test.csv is expected")
    for part, table in part_tables(folder, ".csv", "BRIGHTER"):
        for line, values in table_rows(table, {"text", *EMOTIONS}, "BRIGHTER"):
            yield _row(table.name, line, values, part)


def _row(source: str, line: int, values: dict[str, str], part: str) -> Row | Problem:
    wrong = [f"{name} {values[name]!r} is none of 0 to 3" for name in EMOTIONS if values[name] not in _INTENSITIES]
    if wrong:
        return Problem(source, line, "; ".join(wrong))
    strengths = {name: _INTENSITIES[values[name]] for name in EMOTIONS if _INTENSITIES[values[name]]}
    valence, arousal, dominance = labels(felt_vad(strengths.items()))
    category = ", ".join(strengths) or NEUTRAL
    return Row(
        source, line, None, values["text"], valence, arousal, dominance, speaker="", category=category, split=part
    )
