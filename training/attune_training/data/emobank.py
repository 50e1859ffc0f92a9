"""EmoBank: 10,062 English sentences with valence, arousal and dominance (Buechel & Hahn 2017; CC-BY-SA 4.0)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from attune_training.data.utterance import Utterance

__all__ = ["read_emobank"]

_COLUMNS = {"split", "V", "A", "D", "text"}


def read_emobank(path: Path, split: Literal["train", "dev", "test"]) -> list[Utterance]:
    """Return the sentences of one split that hold a letter; they have no audio, and no speaker is known.

    Raises:
        ValueError: the file is not EmoBank's table, or it has no row of this split.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not _COLUMNS.issubset(reader.fieldnames or ()):
            raise ValueError(f"{path} is not EmoBank: its header must name {', '.join(sorted(_COLUMNS))}")
        rows = [row for row in reader if row["split"] == split]
    if not rows:
        raise ValueError(f"{path} has no row of the split {split!r}")
    return [
        Utterance(None, row["text"].strip(), float(row["V"]), float(row["A"]), float(row["D"]), speaker="")
        for row in rows
        if any(letter.isalpha() for letter in row["text"])
    ]
