"""Diaries: short essays and lists of feeling words by people who rated how they felt (SemEval-2026 task 2; CC0).

2,764 texts by 137 writers, often over weeks. Valence (-2..2) and arousal (0..2) are the **writer's own** at the time of
writing, put on 1..5; there is no dominance. Lists of feeling words ("Tired , Sad , Annoyed") have the form `words`,
essays `essay`. The split is by writer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attune_training.data.rows import UNLABELLED, CorpusError, Problem, Row
from attune_training.data.tables import part_of, table_rows
from attune_training.data.targets import rescaled

__all__ = ["NOTE", "plain_text", "read_rows"]

NOTE = "words alone; valence and arousal are the writers' own, dominance has no labels"

_COLUMNS = {"user_id", "text", "is_words", "valence", "arousal"}
_VALENCE, _AROUSAL = (-2.0, 2.0), (0.0, 2.0)
_FORMS = {"True": "words", "False": "essay"}

_LINE_BREAK = re.compile(r"\s*\\+ ?n\s*")
_CONTRACTION = re.compile(r"(\w) ' ?(m|s|t|d|re|ve|ll|clock)\b", re.IGNORECASE)
_POSSESSIVE = re.compile(r"(\w) ' ")
_BEFORE_MARK = re.compile(r"\s+([.,!?;:%)\]…”]+)")
_AFTER_OPENING = re.compile(r"([(\[“])\s+")
_TIME = re.compile(r"\b(\d{1,2}): (\d\d)(?!\d)")
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')


def plain_text(tokenised: str) -> str:
    """Return the text as its writer wrote it: `I ' m fine .` becomes `I'm fine.`

    Undone are spaces about apostrophes, quotes, brackets and marks, times of day (`3 : 45`), and line breaks that
    stand there as a backslash and an n.
    """
    text = _LINE_BREAK.sub(" ", tokenised)
    text = _CONTRACTION.sub(r"\1'\2", text)
    text = _POSSESSIVE.sub(r"\1' ", text)
    text = _BEFORE_MARK.sub(r"\1", text)
    text = _TIME.sub(r"\1:\2", text)
    text = _AFTER_OPENING.sub(r"\1", text)
    if text.count('"') % 2 == 0:  # or which of them open would be a guess
        text = _QUOTED.sub(r'"\1"', text)
    return re.sub(r"\s+", " ", text).strip()


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the texts; those of writers whose number ends in 0 are the test part, in 8 the validation part.

    Raises:
        CorpusError: the file is not the diaries' table.
    """
    if not path.is_file():
        raise CorpusError(f"{path} is not the diaries' table: train_subtask1.csv is expected")
    for line, values in table_rows(path, _COLUMNS, "the diaries' table"):
        try:
            yield _row(path.name, line, values)
        except ValueError as error:
            yield Problem(path.name, line, str(error))


def _row(source: str, line: int, values: dict[str, str]) -> Row:
    writer, form = values["user_id"], _FORMS.get(values["is_words"])
    if not writer.isdecimal():
        raise ValueError(f"the writer {writer!r} is not a number")
    if form is None:
        raise ValueError(f"is_words {values['is_words']!r} is neither True nor False")
    return Row(
        source,
        line,
        None,
        plain_text(values["text"]),
        _rated("valence", values["valence"], *_VALENCE),
        _rated("arousal", values["arousal"], *_AROUSAL),
        UNLABELLED,
        speaker=f"writer-{int(writer):03d}",
        split=part_of(int(writer)),
        form=form,
    )


def _rated(name: str, raw: str, low: float, high: float) -> float:
    if not raw:
        raise ValueError(f"{name} is missing")
    try:
        rating = float(raw)
    except ValueError as error:
        raise ValueError(f"{name} {raw!r} is not a number") from error
    try:
        return rescaled(rating, low, high)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
