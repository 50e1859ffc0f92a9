"""Lexicons of words with VAD ratings: read, checked, and put on 1..5."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attune_training.config import DIMENSIONS, MAX_VAD, MIN_VAD
from attune_training.emotion_map.scale import Array, Scale, UnknownScaleError, recognise_scale

__all__ = ["Lexicon", "LexiconError", "read_lexicon"]

MIN_TERMS = 400

_DELIMITERS = ("\t", ",", ";")
_COLUMN_NAMES = (
    ("term", "word", "lemma"),
    *((name, name[0], f"{name[0]}.mean.sum") for name in DIMENSIONS),  # the last: Warriner et al. 2013
)
"""Header names of the term, valence, arousal and dominance, in lower case; the first name found is used."""


class LexiconError(ValueError):
    """A lexicon cannot be read; the message names the file, the line where there is one, and what was expected."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words with their ratings: `vad` is [N, 3] on 1..5, read from ratings on `scale`.

    Terms are unique; `repeated` counts the rows that were merged into an earlier one of the same term.
    """

    terms: tuple[str, ...]
    vad: Array
    scale: Scale
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the table: `ratings` are valence, arousal and dominance on the table's own scale."""

    line: int
    term: str
    ratings: tuple[float, float, float]


def read_lexicon(path: Path, scale: tuple[float, float] | None = None) -> Lexicon:
    """Read a VAD lexicon, rescaled to 1..5.

    Reads NRC VAD v2.1 (tab-separated, header, -1..1), NRC VAD v1 (tab-separated, 0..1, with or without header), the
    Glasgow Norms (CSV, 1..9), and any table separated by tabs, commas or semicolons whose header names the term,
    valence, arousal and dominance; further columns are ignored. `scale` gives the ends of the scale; without it the
    scale is recognised (`recognise_scale`). A repeated term counts once, with the mean of its ratings: otherwise a
    held-out term could be in the training part too.

    Raises:
        LexiconError: the file is missing or has another format, a rating is invalid, or the scale is not recognised.
    """
    rows, is_nrc_v2 = _table(path)
    if len({row.term for row in rows}) < MIN_TERMS:
        raise LexiconError(f"{path}: {len(rows)} terms are too few for the map; at least {MIN_TERMS} are needed")
    raw = np.array([row.ratings for row in rows])  # [rows, 3]
    known = _given(scale, rows, path) if scale else _recognised(raw, is_nrc_v2, path)
    terms: dict[str, int] = {}
    index = np.array([terms.setdefault(row.term, len(terms)) for row in rows])  # [rows]
    sums = np.zeros((len(terms), len(DIMENSIONS)))
    np.add.at(sums, index, raw)
    means = sums / np.bincount(index)[:, None]
    vad = MIN_VAD + (means - known.low) / (known.high - known.low) * (MAX_VAD - MIN_VAD)
    return Lexicon(tuple(terms), vad, known, repeated=len(rows) - len(terms))


def _given(scale: tuple[float, float], rows: Sequence[_Row], path: Path) -> Scale:
    low, high = scale
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise LexiconError(f"the scale's low end must be below its high end, got {low:g} and {high:g}")
    for row in rows:
        if not all(low <= rating <= high for rating in row.ratings):
            raise LexiconError(
                f"{path}, line {row.line}: '{row.term}' is rated {row.ratings}, outside the scale {low:g}..{high:g}"
            )
    return Scale(low, high, "given")


def _recognised(raw: Array, is_nrc_v2: bool, path: Path) -> Scale:
    try:
        return recognise_scale(raw, is_nrc_v2)
    except UnknownScaleError as error:
        raise LexiconError(
            f"{path}: the scale of the ratings is not plain from the data: {error}. Give it with --scale LOW HIGH, "
            "the lowest and the highest rating that people could choose, for example --scale 1 9"
        ) from error


def _table(path: Path) -> tuple[list[_Row], bool]:
    """Return the rows, and whether their layout is that of NRC VAD v2.1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LexiconError(f"cannot read the lexicon {path}: {error}") from error
    first_line = text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in _DELIMITERS if mark in first_line), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    if delimiter == "\t":  # quotation marks are literal in the tab-separated lexicons
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        filled = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise LexiconError(f"{path}, line {reader.line_num}: {error}") from error
    if not filled:
        raise LexiconError(f"{path}: the lexicon is empty")
    first_row = filled[0][1]
    header = [] if any(_is_number(cell) for cell in first_row[1:]) else [cell.strip().lower() for cell in first_row]
    columns = _columns_of(header, len(first_row), path)
    is_nrc_v2 = delimiter == "\t" and header == ["term", *DIMENSIONS]
    return [_row(line, cells, columns, path) for line, cells in filled[bool(header) :]], is_nrc_v2


def _columns_of(header: list[str], width: int, path: Path) -> tuple[int, ...]:
    """Return the column indices of term, valence, arousal and dominance."""
    if not header:
        if width != len(_COLUMN_NAMES):
            raise LexiconError(f"{path}: without a header the columns must be term, valence, arousal, dominance")
        return tuple(range(width))
    found = [next((header.index(name) for name in names if name in header), None) for names in _COLUMN_NAMES]
    if None in found:
        raise LexiconError(
            f"{path}: the header must name term (or word), valence, arousal and dominance, got {', '.join(header)}"
        )
    return tuple(column for column in found if column is not None)


def _row(line: int, row: list[str], columns: tuple[int, ...], path: Path) -> _Row:
    cells = [row[column].strip() if column < len(row) else "" for column in columns]
    term, *numbers = cells
    if not term or not all(_is_number(number) for number in numbers):
        raise LexiconError(f"{path}, line {line}: needs a term and three numbers, got {cells}")
    valence, arousal, dominance = (float(number) for number in numbers)
    return _Row(line, term, (valence, arousal, dominance))


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
