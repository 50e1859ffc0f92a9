"""Lexicons of words with VAD ratings, and the anchors of the emotions: read, checked, and put on 1..5."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

__all__ = ["Anchors", "Lexicon", "LexiconError", "read_anchors", "read_lexicon"]

Array = npt.NDArray[np.float64]

VAD_DIMENSIONS = ("valence", "arousal", "dominance")
MIN_VAD, MAX_VAD = 1.0, 5.0
SCALES = ((0.0, 1.0), (-1.0, 1.0), (1.0, 5.0), (1.0, 9.0))
"""Scales that a lexicon may be rated on, tried in this order: NRC VAD v1, NRC VAD v2.1, Attune's own, Glasgow Norms."""

MIN_TERMS = 400
_TERM_COLUMNS = ("term", "word")


class LexiconError(ValueError):
    """A lexicon or a file of anchors cannot be read; the message names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words with their ratings: `vad` is [N, 3] on 1..5, read from ratings on `scale`."""

    terms: tuple[str, ...]
    vad: Array
    scale: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Anchors:
    """The emotions in class order: labels and their VAD [K, 3] on 1..5."""

    labels: tuple[str, ...]
    vad: Array


def read_lexicon(path: Path) -> Lexicon:
    """A VAD lexicon, rescaled to 1..5.

    Reads NRC VAD v2.1 (tab-separated, header, -1..1), NRC VAD v1 (tab-separated, 0..1, with or without header), the
    Glasgow Norms (CSV, 1..9), and any tab- or comma-separated table with the columns term (or word), valence, arousal,
    dominance on one of those scales or 1..5. Raises `LexiconError`, with the line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LexiconError(f"cannot read the lexicon {path}: {error}") from error
    rows = list(_rows_of(text))
    if not rows:
        raise LexiconError(f"{path}: the lexicon is empty")
    columns = _columns_of(rows[0][1], path)
    ratings = [_rating(line, row, columns, path) for line, row in rows[_has_header(rows[0][1]) :]]
    if len(ratings) < MIN_TERMS:
        raise LexiconError(f"{path}: {len(ratings)} terms are too few for the map; at least {MIN_TERMS} are needed")
    raw = np.array([vad for _, vad in ratings])
    scale = _scale_of(raw, path)
    return Lexicon(tuple(term for term, _ in ratings), _rescale(raw, scale), scale)


def _rows_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """The filled rows with their line numbers."""
    lines = text.splitlines()
    tabs = bool(lines) and "\t" in lines[0]
    # Quotation marks mean nothing in the tab-separated lexicons.
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def _has_header(row: list[str]) -> bool:
    return not any(_is_number(cell) for cell in row[1:])


def _columns_of(first: list[str], path: Path) -> tuple[int, ...]:
    """Where term, valence, arousal and dominance are."""
    if not _has_header(first):
        if len(first) != 4:
            raise LexiconError(f"{path}: without a header the columns must be term, valence, arousal, dominance")
        return (0, 1, 2, 3)
    names = [cell.strip().lower() for cell in first]
    term = next((name for name in _TERM_COLUMNS if name in names), None)
    missing = [name for name in VAD_DIMENSIONS if name not in names]
    if term is None or missing:
        raise LexiconError(f"{path}: the header must name term (or word), valence, arousal and dominance")
    return tuple(names.index(name) for name in (term, *VAD_DIMENSIONS))


def _rating(line: int, row: list[str], columns: tuple[int, ...], path: Path) -> tuple[str, list[float]]:
    cells = [row[column].strip() if column < len(row) else "" for column in columns]
    if not cells[0] or not all(_is_number(cell) for cell in cells[1:]):
        raise LexiconError(f"{path}, line {line}: needs a term and three numbers, got {cells}")
    return cells[0], [float(cell) for cell in cells[1:]]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _scale_of(raw: Array, path: Path) -> tuple[float, float]:
    """The first scale that holds every rating; each dimension has to use more than half of it."""
    low, high = raw.min(0), raw.max(0)  # [3]
    for scale in SCALES:
        if (low >= scale[0]).all() and (high <= scale[1]).all():
            if ((high - low) > (scale[1] - scale[0]) / 2).all():
                return scale
            break
    known = ", ".join(f"{low:g}..{high:g}" for low, high in SCALES)
    raise LexiconError(
        f"{path}: the ratings run from {low.tolist()} to {high.tolist()} (valence, arousal, dominance), "
        f"which is none of the known scales {known}"
    )


def _rescale(raw: Array, scale: tuple[float, float]) -> Array:
    return MIN_VAD + (raw - scale[0]) / (scale[1] - scale[0]) * (MAX_VAD - MIN_VAD)


def read_anchors(path: Path) -> Anchors:
    """Label and anchor of every entry of the knowledge base's YAML file. Raises `LexiconError`."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["emotions"]
        labels = tuple(str(entry["label"]) for entry in entries)
        vad = np.array([[entry["anchor"][name] for name in VAD_DIMENSIONS] for entry in entries], np.float64)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise LexiconError(f"{path}: needs a list 'emotions' with label and anchor: {error!r}") from error
    return Anchors(labels, vad)
