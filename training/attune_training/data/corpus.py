"""One entry point for every corpus: `open_corpus(kind, path)`.

All rows are checked when a corpus is opened, so that a run never fails later at a missing file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from attune_training.data import (
    brighter,
    cremad,
    diaries,
    emobank,
    empathic,
    goemotions,
    huggingface,
    iemocap,
    manifest,
    ravdess,
    written,
)
from attune_training.data.rows import CheckedRow, CorpusError, Problem, Row, check_row
from attune_training.data.utterance import Utterance

__all__ = ["CORPUS_KINDS", "BadRows", "Corpus", "CorpusError", "Problem", "default_split", "open_corpus"]

BadRows = Literal["refuse", "skip"]

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Corpus:
    """The valid rows of a corpus.

    `problems` are the rows left out. `note` is what every result on this corpus must say, or empty. `digest` is
    the SHA-256 over labels, words, speakers and the audio files' bytes, in order; it does not depend on where the
    corpus lies. `keeps_test`: its own test part may be tested on and nothing else.
    """

    name: str
    utterances: tuple[Utterance, ...]
    problems: tuple[Problem, ...]
    note: str
    digest: str
    keeps_test: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of corpus is read; an empty name stands for the path's own.

    `is_split`: its readers put every row in a part, and its test part is never trained on.
    """

    read_rows: Callable[[Path], Iterable[Row | Problem]]
    name: str = ""
    note: str = ""
    is_split: bool = False


_KINDS = {
    "iemocap": _Kind(iemocap.read_rows, "IEMOCAP"),
    "huggingface": _Kind(huggingface.read_rows),
    "manifest": _Kind(manifest.read_rows),
    "ravdess": _Kind(ravdess.read_rows, "RAVDESS", ravdess.NOTE),
    "emobank": _Kind(emobank.read_rows, "EmoBank", emobank.NOTE),
    "cremad": _Kind(cremad.read_rows, "CREMA-D", cremad.NOTE, is_split=True),
    "diaries": _Kind(diaries.read_rows, "diaries", diaries.NOTE, is_split=True),
    "goemotions": _Kind(goemotions.read_rows, "GoEmotions", goemotions.NOTE, is_split=True),
    "brighter": _Kind(brighter.read_rows, "BRIGHTER", brighter.NOTE, is_split=True),
    "empathic": _Kind(empathic.read_rows, "empathic reactions", empathic.NOTE, is_split=True),
    "written": _Kind(written.read_rows, "written texts", written.NOTE, is_split=True),
}

CORPUS_KINDS = tuple(_KINDS)
"""The kinds of corpus that `open_corpus` knows."""


def open_corpus(kind: str, path: str | Path, bad_rows: BadRows = "refuse") -> Corpus:
    """Read and check a corpus.

    Args:
        kind: one of `CORPUS_KINDS`.
        path: the corpus's folder or file; for `huggingface` also the name of a data set on the hub.
        bad_rows: `refuse` raises where any row is bad; `skip` leaves bad rows out and lists them in `problems`.

    Raises:
        CorpusError: the kind is unknown, the path is not such a corpus, a row is bad and `bad_rows` is `refuse`, or
            no valid row is left. Its message lists bad rows by file and line.
    """
    if kind not in _KINDS:
        raise CorpusError(f"{kind!r} is no kind of corpus; the kinds are {', '.join(CORPUS_KINDS)}")
    if bad_rows not in ("refuse", "skip"):
        raise CorpusError(f"bad rows can be refused or skipped: 'refuse' or 'skip', not {bad_rows!r}")
    chosen, place = _KINDS[kind], Path(path)
    good: list[CheckedRow] = []
    problems: list[Problem] = []
    for row in _checked(chosen.read_rows(place)):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            good.append(row)
    if problems and bad_rows == "refuse":
        raise CorpusError(f"{_listing(place, problems)}\nchoose --bad-rows skip to leave them out")
    if not good:
        raise CorpusError(f"no good row is left\n{_listing(place, problems)}" if problems else f"{place} holds no row")
    return Corpus(
        chosen.name or _own_name(place),
        tuple(row.utterance for row in good),
        tuple(problems),
        chosen.note,
        _digest(good),
        chosen.is_split,
    )


def default_split(kind: str) -> str:
    """Return the policy by which a kind of corpus is cut unless another one is asked for."""
    return "given" if _KINDS[kind].is_split else "stratified"


def _checked(rows: Iterable[Row | Problem]) -> Iterator[CheckedRow | Problem]:
    for row in rows:
        yield row if isinstance(row, Problem) else check_row(row)


def _listing(path: Path, problems: Sequence[Problem]) -> str:
    """Return the first problems, one a line, and how many more there are."""
    count = len(problems)
    lines = [f"{path} has {count} bad row{'s' if count > 1 else ''}:", *map(str, problems[:_SHOWN_PROBLEMS])]
    if count > _SHOWN_PROBLEMS:
        lines.append(f"and {count - _SHOWN_PROBLEMS} more")
    return "\n  ".join(lines)


def _own_name(path: Path) -> str:
    """Return a file's or folder's name, or the hub's name of a data set; a file named manifest takes its folder's."""
    if not path.exists():
        return path.as_posix()
    resolved = path.resolve()
    if path.is_file():
        return resolved.parent.name if resolved.stem == "manifest" else resolved.stem
    return resolved.name


def _digest(rows: Sequence[CheckedRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        fields = asdict(row.utterance) | {"audio": row.audio_digest}
        if not row.utterance.form:
            del fields["form"]  # as it was before there were forms, so that runs of then still go on
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()
