"""A manifest: any corpus as one table, CSV or Parquet.

Columns: `path` (relative to the manifest), `transcript`, `valence`, `arousal`, `dominance` (1..5) and
`speaker`; optionally `session`, `category` and `split` (train, validation or test). Other columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attune_training.data.rows import CorpusError, Problem, Row, cell_text, first_line

__all__ = ["OPTIONAL_COLUMNS", "REQUIRED_COLUMNS", "read_rows"]

REQUIRED_COLUMNS = ("path", "transcript", "valence", "arousal", "dominance", "speaker")
OPTIONAL_COLUMNS = ("session", "category", "split")


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Yield the manifest's rows; lines are those of a CSV file, or the row's number in a Parquet file, from 1.

    Raises:
        CorpusError: the path is no CSV or Parquet file, or columns are missing.
    """
    if not path.is_file():
        raise CorpusError(f"{path} is not a manifest: a CSV or Parquet file is expected")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet_rows(path)
    return _csv_rows(path)


def _csv_rows(path: Path) -> Iterator[Row | Problem]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_columns(path, reader.fieldnames or ())
            for values in reader:
                yield _csv_row(path, reader.line_num, values)
        except (csv.Error, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}, near line {reader.line_num + 1}: not a CSV file in UTF-8: {error}") from error


def _csv_row(path: Path, last_line: int, values: dict[Any, Any]) -> Row | Problem:
    line = first_line(last_line, values.values())
    if None in values or None in values.values():
        return Problem(path.name, line, "the row has more or fewer fields than the header")
    return _row(path, line, values)


def _parquet_rows(path: Path) -> Iterator[Row | Problem]:
    import pyarrow.parquet  # slow to import, and not needed for a CSV file.

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    with file:
        _check_columns(path, file.schema_arrow.names)
        wanted = [name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if name in file.schema_arrow.names]
        for number, values in enumerate(file.read(columns=wanted).to_pylist(), start=1):
            yield _row(path, number, values)


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in found]
    if missing:
        raise CorpusError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(found) or 'none'}"
        )


def _row(path: Path, line: int, values: Mapping[str, object]) -> Row | Problem:
    audio = cell_text(values["path"])
    if not audio:
        return Problem(path.name, line, "the path is empty")
    return Row(
        path.name,
        line,
        path.parent / audio,
        cell_text(values["transcript"]),
        values["valence"],
        values["arousal"],
        values["dominance"],
        speaker=cell_text(values["speaker"]),
        session=cell_text(values.get("session")),
        category=cell_text(values.get("category")),
        split=cell_text(values.get("split")),
    )
