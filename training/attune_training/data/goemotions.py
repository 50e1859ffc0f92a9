"""GoEmotions: Reddit comments with 27 categories of emotion and neutral, several each (Demszky et al. 2020; CC BY 4.0).

**Targets are derived**: the mean of the categories' norms (`attune_training.data.norms`), neutral counting as one
of them. Surprise alone has no valence. Names and religions are masked in the text as `[NAME]` and `[RELIGION]`;
nobody says brackets, so they are read as "someone" and "religion". Writers are not known: the split is the corpus's
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attune_training.data.norms import category_words, felt_vad
from attune_training.data.rows import CorpusError, Problem, Row
from attune_training.data.tables import labels, part_tables

__all__ = ["NOTE", "read_rows"]

NOTE = "words alone; targets derived from categories by the Glasgow Norms, surprise has no valence"

_LABELS = "labels.txt"
_MASKS = {"[NAME]": "someone", "[RELIGION]": "religion"}


def read_rows(folder: Path) -> Iterator[Row | Problem]:
    """Yield the comments of train.tsv, dev.tsv and test.tsv: text, numbers of the labels, id.

    Raises:
        CorpusError: the folder does not hold them and labels.txt, or a label has no norms.
    """
    path = folder / _LABELS
    if not path.is_file():
        raise CorpusError(f"{folder} is not GoEmotions: train.tsv, dev.tsv, test.tsv and {_LABELS} are expected in it")
    categories = path.read_text(encoding="utf-8").split()
    if unknown := sorted(set(categories) - set(category_words())):
        raise CorpusError(f"{path} names categories without norms: {', '.join(unknown)}")
    for part, table in part_tables(folder, ".tsv", "GoEmotions"):
        with table.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield _row(table.name, number, line.rstrip("\r\n"), part, categories)


def _row(source: str, number: int, line: str, part: str, categories: Sequence[str]) -> Row | Problem:
    fields = line.split("\t")
    if len(fields) != 3:
        return Problem(source, number, "not of the form text<tab>labels<tab>id")
    text, numbers, _ = fields
    try:
        felt = [categories[_index(item, len(categories))] for item in numbers.split(",")]
    except ValueError as error:
        return Problem(source, number, str(error))
    valence, arousal, dominance = labels(felt_vad((category, 1.0) for category in felt))
    words = _unmasked(text)
    return Row(
        source, number, None, words, valence, arousal, dominance, speaker="", category=", ".join(felt), split=part
    )


def _index(raw: str, count: int) -> int:
    if not raw.isdecimal() or int(raw) >= count:
        raise ValueError(f"the label {raw!r} is none of 0 to {count - 1}")
    return int(raw)


def _unmasked(text: str) -> str:
    for mask, words in _MASKS.items():
        text = text.replace(mask, words)
    return text
