"""The texts to measure by, read from CSV files and checked.

`stories.csv` has `id, text, emotion`; `narrations.csv`, whose feeling changes on the way, has a row for each
part: `id, part, text, emotion, overall`; `negations.csv` has `id, text, word, word_valence, valence, arousal`. A
file of your own has the same columns and no others.

The overall emotion of a narration is what its speaker would answer right after the last sentence to "and how do you
feel about it all?": the emotion of the part that holds the outcome. This is the last part, unless that one is only a
remark after the outcome (a shrug, a look ahead, falling asleep); then it is the part before.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from attune_training.data.rows import Problem, first_line

__all__ = [
    "MAX_WORDS",
    "MIN_WORDS",
    "NARRATIONS_FILE",
    "NEGATIONS_FILE",
    "STORIES_FILE",
    "Narration",
    "Negation",
    "Part",
    "StoriesError",
    "Story",
    "read_narrations",
    "read_negations",
    "read_stories",
    "shipped_file",
    "words_of",
]

MIN_WORDS, MAX_WORDS = 5, 300
"""How many words a story, or a part of a narration, may have. 300 words fit the 512 tokens that a text tower reads."""

STORIES_FILE, NARRATIONS_FILE, NEGATIONS_FILE = "stories.csv", "narrations.csv", "negations.csv"

_STORY_COLUMNS = ("id", "text", "emotion")
_PART_COLUMNS = ("id", "part", "text", "emotion", "overall")
_NEGATION_COLUMNS = ("id", "text", "word", "word_valence", "valence", "arousal")
_MIN_NEGATION, _MAX_NEGATION = 3, 40
_SIDES = ("low", "high")
_SHOWN_PROBLEMS = 20

_Item = TypeVar("_Item")
_Reader = Callable[[Mapping[str, str], list[str]], _Item]
"""Makes an item of a row, and adds what is wrong with it to the list."""


class StoriesError(ValueError):
    """A file of texts is not what it should be; the message names every line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Story:
    """What somebody tells, and which of the 40 emotions they feel."""

    id: str
    text: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a narration with one emotion."""

    text: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Narration:
    """A longer story whose feeling changes: two or more parts in order, and the emotion of the whole."""

    id: str
    parts: tuple[Part, ...]
    overall: str

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Negation:
    """A sentence with a negation. Sides are `low` or `high`; `arousal` is empty where it is not clear.

    `word` is the word that the negation bears on, `word_valence` the side of that word by itself.
    """

    id: str
    text: str
    word: str
    word_valence: str
    valence: str
    arousal: str

    @property
    def is_turned(self) -> bool:
        """Whether the sentence lies on the other side than its word."""
        return self.word_valence != self.valence


@dataclass(frozen=True, slots=True)
class _Row:
    """A row with its place in the file."""

    line: int
    cells: Mapping[str, str]


def shipped_file(name: str) -> Path:
    """Return the path of a file that comes with the project."""
    return Path(__file__).parent / name


def words_of(text: str) -> list[str]:
    """Return the words in lower case."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def read_stories(path: Path, emotions: Collection[str]) -> list[Story]:
    """Read stories; `emotions` are the labels that there are.

    Raises:
        StoriesError: the file cannot be read, a column is missing or unknown, an emotion is unknown, an id or a text
            comes twice, or a text is too short or too long.
    """

    known = _Emotions(emotions)

    def story(cells: Mapping[str, str], reasons: list[str]) -> Story:
        _check_length(cells["text"], MIN_WORDS, MAX_WORDS, reasons)
        return Story(cells["id"], cells["text"], known.label("emotion", cells, reasons))

    return _read(path, _STORY_COLUMNS, story, known.note, unique_ids=True)


def read_narrations(path: Path, emotions: Collection[str]) -> list[Narration]:
    """Read narrations, whose parts stand below one another, numbered from 1.

    Raises:
        StoriesError: as `read_stories`, or parts are out of order, or a narration has a single part, or its
            overall emotion differs between rows or is that of no part.
    """

    known = _Emotions(emotions)

    def row(cells: Mapping[str, str], reasons: list[str]) -> Mapping[str, str]:
        _check_length(cells["text"], MIN_WORDS, MAX_WORDS, reasons)
        return {**cells, **{name: known.label(name, cells, reasons) for name in ("emotion", "overall")}}

    groups: dict[str, list[Mapping[str, str]]] = {}
    for cells in _read(path, _PART_COLUMNS, row, known.note, unique_ids=False):
        groups.setdefault(cells["id"], []).append(cells)
    return [_narration(path, name, rows) for name, rows in groups.items()]


def _narration(path: Path, name: str, rows: Sequence[Mapping[str, str]]) -> Narration:
    place = f"{path.name}: narration {name!r}"
    numbers = [cells["part"] for cells in rows]
    if len(rows) < 2 or numbers != [str(number) for number in range(1, len(rows) + 1)]:
        raise StoriesError(f"{place}: its parts must be numbered 1, 2, ... in order, got {', '.join(numbers)}")
    overall = {cells["overall"] for cells in rows}
    if len(overall) > 1 or not overall <= {cells["emotion"] for cells in rows}:
        raise StoriesError(f"{place}: overall must be one emotion, that of a part, got {', '.join(sorted(overall))}")
    return Narration(name, tuple(Part(cells["text"], cells["emotion"]) for cells in rows), overall.pop())


def read_negations(path: Path) -> list[Negation]:
    """Read sentences with a negation.

    Raises:
        StoriesError: as `read_stories`, or a side is neither low nor high, or the word is not in the text.
    """

    def negation(cells: Mapping[str, str], reasons: list[str]) -> Negation:
        _check_length(cells["text"], _MIN_NEGATION, _MAX_NEGATION, reasons)
        for name in ("word_valence", "valence", "arousal"):
            if cells[name] not in _SIDES and not (name == "arousal" and not cells[name]):
                reasons.append(f"{name} {cells[name]!r} is neither low nor high")
        if cells["word"].lower() not in words_of(cells["text"]):
            reasons.append(f"the word {cells['word']!r} is not in the text")
        return Negation(**cells)

    return _read(path, _NEGATION_COLUMNS, negation, str, unique_ids=True)


class _Emotions:
    """The labels that there are, of lower case; a file may name them in any case."""

    def __init__(self, labels: Collection[str]) -> None:
        self._labels = labels
        self._missed = False

    def label(self, column: str, cells: Mapping[str, str], reasons: list[str]) -> str:
        """Return the label that stands in a column, and add a reason if there is no such emotion."""
        label = cells[column].strip().lower()
        if label not in self._labels:
            self._missed = True
            reasons.append(f"{column} {cells[column]!r} is none of the {len(self._labels)} emotions")
        return label

    def note(self) -> str:
        """Return a line with all labels, if one was missed."""
        return f"\nthe emotions are {', '.join(sorted(self._labels))}" if self._missed else ""


def _read(
    path: Path, columns: Sequence[str], make: _Reader[_Item], note: Callable[[], str], *, unique_ids: bool
) -> list[_Item]:
    """Return the items of all rows, or raise with all that is wrong, and a note at the end."""
    items: list[_Item] = []
    problems: list[Problem] = []
    texts: dict[str, int] = {}
    ids: dict[str, int] = {}
    for row in _rows(path, columns, problems):
        reasons: list[str] = []
        if not row.cells["id"]:
            reasons.append("the id is empty")
        if unique_ids:
            _check_new("id", row.cells["id"], row.line, ids, reasons)
        _check_new("text", " ".join(words_of(row.cells["text"])), row.line, texts, reasons)
        items.append(make(row.cells, reasons))
        if reasons:
            problems.append(Problem(path.name, row.line, "; ".join(reasons)))
    if problems:
        raise StoriesError("\n".join(map(str, problems[:_SHOWN_PROBLEMS])) + _more(len(problems)) + note())
    if not items:
        raise StoriesError(f"{path}: there are no rows")
    return items


def _more(count: int) -> str:
    return f"\nand {count - _SHOWN_PROBLEMS} more" if count > _SHOWN_PROBLEMS else ""


def _rows(path: Path, columns: Sequence[str], problems: list[Problem]) -> Iterator[_Row]:
    """Yield the rows that have the right number of fields; the others go to `problems`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, columns, reader.fieldnames or ())
            for cells in reader:
                line = first_line(reader.line_num, cells.values())
                if _has_wrong_fields(cells):
                    problems.append(Problem(path.name, line, "the row has more or fewer fields than the header"))
                else:
                    yield _Row(line, {name: cell.strip() for name, cell in cells.items()})
    except OSError as error:
        raise StoriesError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise StoriesError(f"{path}: not a CSV file in UTF-8: {error}") from error


def _has_wrong_fields(cells: Mapping[Any, Any]) -> bool:
    return None in cells or None in cells.values()


def _check_columns(path: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    if sorted(found) != sorted(columns):
        raise StoriesError(
            f"{path.name}:1: the columns must be {', '.join(columns)}; the file has {', '.join(found) or 'none'}"
        )


def _check_new(what: str, value: str, line: int, seen: dict[str, int], reasons: list[str]) -> None:
    first = seen.setdefault(value, line)
    if first != line:
        reasons.append(f"the {what} is that of line {first}")


def _check_length(text: str, least: int, most: int, reasons: list[str]) -> None:
    count = len(words_of(text))
    if not least <= count <= most:
        reasons.append(f"the text has {count} words; {least} to {most} are needed")
