"""Texts that were written for this project: what people might say aloud about their lives (Apache-2.0).

A table with the columns `text, emotion, valence, arousal, dominance, writer, split`. A text has either one of the
knowledge base's emotions, whose anchor is then the **derived** target, or valence, arousal and dominance as its writer
judged them, 1..5; a dimension that the writer left open is empty. The writers of the validation part wrote none of the
training part. None of these texts is among the stories to measure by, and their writers had not seen those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from attune_training.config import DIMENSIONS
from attune_training.data.rows import UNLABELLED, CorpusError, Problem, Row
from attune_training.data.tables import table_rows
from attune_training.providers import anchors

__all__ = ["NOTE", "read_rows"]

NOTE = "words alone, written for this project; targets are the anchors of the emotions, or the writers' own judgement"

_COLUMNS = {"text", "emotion", *DIMENSIONS, "writer", "split"}


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the texts.

    Raises:
        CorpusError: the file is not such a table.
    """
    if not path.is_file():
        raise CorpusError(f"{path} is not a table of texts: a CSV file is expected")
    points = anchors()
    for line, values in table_rows(path, _COLUMNS, "a table of written texts"):
        try:
            valence, arousal, dominance = _target(values, points)
        except ValueError as error:
            yield Problem(path.name, line, str(error))
            continue
        yield Row(
            path.name,
            line,
            None,
            values["text"],
            valence,
            arousal,
            dominance,
            speaker=f"writer-{values['writer']}",
            category=_label(values),
            split=values["split"],
        )


def _label(values: Mapping[str, str]) -> str:
    return values["emotion"].strip().lower()


def _target(values: Mapping[str, str], points: Mapping[str, tuple[float, float, float]]) -> tuple[object, ...]:
    judged, emotion = [values[name] for name in DIMENSIONS], _label(values)
    if emotion and any(judged):
        raise ValueError("a text has either an emotion or a judgement, not both")
    if not emotion:
        return tuple(value or UNLABELLED for value in judged)
    if emotion not in points:
        raise ValueError(f"the emotion {emotion!r} is none of the knowledge base's: {', '.join(sorted(points))}")
    return points[emotion]
