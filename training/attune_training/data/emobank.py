"""EmoBank: 10,062 English sentences with valence, arousal and dominance (Buechel & Hahn 2017; CC-BY-SA 4.0).

Text only: there is no audio, and no speaker is known. Nine of its sentences are punctuation without a letter; they are
left out, here and in every figure. Synthesised speech of it is read as a manifest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from attune_training.data.rows import CorpusError, Row, first_line

__all__ = ["NOTE", "read_rows"]

NOTE = "words alone"

_COLUMNS = {"split", "V", "A", "D", "text"}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the sentences that contain a letter; the split `dev` is the validation part.

    Raises:
        CorpusError: the file is not EmoBank's table.
    """
    if not path.is_file():
        raise CorpusError(f"{path} is not EmoBank: its table is expected, emobank.csv")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not _COLUMNS.issubset(reader.fieldnames or ()):
            raise CorpusError(f"{path} is not EmoBank: its header must name {', '.join(sorted(_COLUMNS))}")
        for values in reader:
            text = values["text"] or ""
            if any(letter.isalpha() for letter in text) or not text.strip():
                yield Row(
                    path.name,
                    first_line(reader.line_num, values.values()),
                    None,
                    text,
                    values["V"],
                    values["A"],
                    values["D"],
                    speaker="",
                    split=values["split"] or "",
                )
