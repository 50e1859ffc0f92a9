"""What the readers of plain tables share: a CSV file's rows with their lines, and which writers are held out."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from attune_training.data.rows import UNLABELLED, CorpusError, first_line
from attune_training.data.targets import VAD

__all__ = ["labels", "part_of", "part_tables", "table_rows"]

_TEST, _VALIDATION = 0, 8


def part_of(number: int) -> str:
    """Return the part of a numbered writer: those ending in 0 are the test part, those in 8 validation.

    It was chosen before anything was trained, and looks at nothing but the number.
    """
    return {_TEST: "test", _VALIDATION: "validation"}.get(number % 10, "train")


def labels(vad: VAD) -> tuple[object, object, object]:
    """Return the three as labels of a row: what is not known is `UNLABELLED`."""
    valence, arousal, dominance = (UNLABELLED if math.isnan(value) else value for value in vad)
    return valence, arousal, dominance


def part_tables(folder: Path, suffix: str, corpus: str) -> Iterator[tuple[str, Path]]:
    """Yield the files train, dev and test of a corpus that comes in three, each with its name.

    Raises:
        CorpusError: one of them is not there.
    """
    for name in ("train", "dev", "test"):
        path = folder / f"{name}{suffix}"
        if not path.is_file():
            raise CorpusError(f"{folder} is not {corpus}: {', '.join(_names(suffix))} are expected in it")
        yield name, path


def _names(suffix: str) -> list[str]:
    return [f"{name}{suffix}" for name in ("train", "dev", "test")]


def table_rows(path: Path, columns: set[str], corpus: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file with the line at which each begins; a field that a short row lacks is empty.

    Raises:
        CorpusError: it is no such file, or columns are missing.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            if not columns.issubset(reader.fieldnames or ()):
                raise CorpusError(f"{path} is not {corpus}: its header must name {', '.join(sorted(columns))}")
            for values in reader:
                line = first_line(reader.line_num, values.values())
                yield line, {name: values[name] or "" for name in columns}
        except (csv.Error, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}, near line {reader.line_num + 1}: not a CSV file in UTF-8: {error}") from error
