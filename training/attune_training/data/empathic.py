"""Empathic reactions: messages about news by people who rated their feelings (Buechel et al. 2018; CC BY 4.0).

Only **valence of the distressed** is taken. Distress (1..7) is the mean of items such as worried, upset and disturbed,
so above the middle of its scale it says how unpleasant the writer felt: from 4, half the way from neutral to the norm
of distress, to 7, the norm itself. Below the middle it says only that the writer was not distressed, and not what else:
among the least distressed messages are scornful and angry ones. These are left out. Arousal and dominance were not
asked for, and some of the items are quiet (grieved) and some are not (alarmed): they have no labels. Empathy
(warm, tender, moved) goes with sorrow and with joy: nothing is made of it.

A writer wrote about five messages; the split is by writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from attune_training.data.norms import NEUTRAL, category_vad
from attune_training.data.rows import UNLABELLED, CorpusError, Problem, Row
from attune_training.data.tables import part_of, table_rows
from attune_training.data.targets import away_from

__all__ = ["NOTE", "distressed_valence", "read_rows"]

NOTE = "words alone; valence alone, derived from the writers' distress where it is above the middle of its scale"

_COLUMNS = {"response_id", "distress", "essay"}
_LOWEST, _MIDDLE, _HIGHEST = 1.0, 4.0, 7.0


def distressed_valence(distress: float) -> float | None:
    """Return valence on 1..5 of a distress on 1..7; None up to 4, where it says nothing of valence.

    Raises:
        ValueError: the distress is not on 1..7.
    """
    if not _LOWEST <= distress <= _HIGHEST:
        raise ValueError(f"distress {distress:g} is outside 1..7")
    if distress <= _MIDDLE:
        return None
    share = (distress - _LOWEST) / (_HIGHEST - _LOWEST)
    return away_from(category_vad(NEUTRAL), category_vad("distress"), share)[0]


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the messages of distressed writers; a tenth of the writers each, by a digest of their id, is held out.

    Raises:
        CorpusError: the file is not the table of messages.
    """
    if not path.is_file():
        raise CorpusError(f"{path} is not the table of empathic reactions: messages.csv is expected")
    for line, values in table_rows(path, _COLUMNS, "the table of empathic reactions"):
        try:
            valence = distressed_valence(_number(values["distress"]))
        except ValueError as error:
            yield Problem(path.name, line, str(error))
        else:
            if valence is not None:
                yield _row(path.name, line, values, valence)


def _row(source: str, line: int, values: dict[str, str], valence: float) -> Row | Problem:
    writer = values["response_id"]
    if not writer:
        return Problem(source, line, "the response_id, which tells the writer, is empty")
    number = int.from_bytes(hashlib.sha256(writer.encode()).digest())
    return Row(
        source,
        line,
        None,
        values["essay"],
        valence,
        UNLABELLED,
        UNLABELLED,
        speaker=writer,
        category="distress",
        split=part_of(number),
    )


def _number(raw: str) -> float:
    try:
        return float(raw)
    except ValueError as error:
        raise ValueError(f"distress {raw!r} is not a number") from error
