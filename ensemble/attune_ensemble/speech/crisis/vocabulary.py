"""Reads `words.yaml` and compiles it once: what the crisis rule looks for, and what makes it think again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import CrisisKind

__all__ = ["GAP", "KINDS", "WORDS_FILE", "KindWords", "Vocabulary", "VocabularyError", "load_vocabulary"]

WORDS_FILE = Path(__file__).with_name("words.yaml")
"""The patterns that ship with Attune."""

KINDS = tuple(kind.value for kind in CrisisKind)
"""What a flag may say, in the order in which flags at one place are told."""

GAP = r"[\s,…—–-]"
"""What may stand between two words of a pattern, besides fillers."""

_PIECE = re.compile(r"\{([a-z_]+)\}")
_LISTS = ("fillers", "denials", "denial_ends_at", "not_denials", "taken_back", "settings", "trivial", "earnest")
_FIELDS = (*_LISTS, "pieces", "denial_reach", "speaker", "own_words", "kinds")


class VocabularyError(AttuneError):
    """The file of the crisis rule's words cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class KindWords:
    """Of one kind: the patterns that find it, and those that only sound like it."""

    patterns: tuple[re.Pattern[str], ...]
    only_sounds_like: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All of `words.yaml`, compiled. `denial` and `speaker` are searched in the words before a find, up to it."""

    kinds: dict[str, KindWords]
    fillers: re.Pattern[str]
    denial: re.Pattern[str]
    not_denials: re.Pattern[str]
    taken_back: re.Pattern[str]
    settings: re.Pattern[str]
    trivial: re.Pattern[str]
    earnest: re.Pattern[str]
    speaker: re.Pattern[str]
    own_words: re.Pattern[str]


@cache
def load_vocabulary(path: Path = WORDS_FILE) -> Vocabulary:
    """The vocabulary in `path`, read and compiled once.

    Raises `VocabularyError`, naming the place, for a missing or unknown field, a pattern that is no text or no regular
    expression, an unknown piece, or one that holds itself.
    """
    document = _read(path)
    compiler = _Compiler(document, path.name)
    whole = compiler.any_of
    return Vocabulary(
        kinds={kind: _kind_words(kind, document["kinds"][kind], compiler, path.name) for kind in KINDS},
        fillers=whole("fillers"),
        denial=compiler.denial(),
        not_denials=whole("not_denials"),
        taken_back=re.compile(rf"{GAP}*(?:{compiler.alternatives('taken_back')})\b", re.IGNORECASE),
        settings=whole("settings"),
        trivial=whole("trivial"),
        earnest=whole("earnest"),
        speaker=re.compile(rf"\b{compiler.source(document['speaker'], 'speaker')}{GAP}*$", re.IGNORECASE),
        own_words=compiler.pattern(document["own_words"], "own_words"),
    )


def _kind_words(kind: str, entry: Any, compiler: _Compiler, source: str) -> KindWords:
    where = f"{source}, {kind}"
    fields = ("patterns", "only_sounds_like")
    _require(isinstance(entry, dict) and set(entry) == set(fields), where, f"must have exactly {' and '.join(fields)}")
    for field in fields:
        _require_texts(entry[field], f"{where}, {field}")
    alike = "|".join(compiler.source(text, f"{kind}, only_sounds_like") for text in entry["only_sounds_like"])
    return KindWords(
        patterns=tuple(compiler.pattern(text, f"{kind}, patterns") for text in entry["patterns"]),
        only_sounds_like=compiler.compiled(rf"\b(?:{alike})(?!\w)", f"{kind}, only_sounds_like"),
    )


class _Compiler:
    """Turns the file's way of writing a pattern into a regular expression."""

    def __init__(self, document: dict[str, Any], source: str) -> None:
        self._document = document
        self._source = source
        fillers = "|".join(filler.replace(" ", r"\s+") for filler in document["fillers"])
        self._gap = rf"(?:{GAP}+(?:(?:{fillers})\b{GAP}+)*)"

    def source(self, text: str, where: str, within: tuple[str, ...] = ()) -> str:
        """The regular expression of a pattern: pieces put in, spaces turned into gaps."""

        def piece(found: re.Match[str]) -> str:
            name = found[1]
            known = name in self._document["pieces"] and name not in within
            _require(known, f"{self._source}, {where}", f"no piece {{{name}}} can stand here")
            return self.source(self._document["pieces"][name], f"pieces, {name}", (*within, name))

        spaced = " ".join(text.split()).replace(" ", "\0")
        return _PIECE.sub(piece, spaced).replace("\0", self._gap)

    def pattern(self, text: str, where: str) -> re.Pattern[str]:
        try:
            return self.compiled(rf"\b(?:{self.source(text, where)})(?!\w)", where)
        except VocabularyError as error:
            raise VocabularyError(f"{error}: {text}") from error

    def alternatives(self, field: str) -> str:
        return "|".join(self.source(text, field) for text in self._document[field])

    def any_of(self, field: str) -> re.Pattern[str]:
        return self.compiled(rf"\b(?:{self.alternatives(field)})\b", field)

    def denial(self) -> re.Pattern[str]:
        """A denial and the words that it reaches over, up to the end of what is searched."""
        ends = self.alternatives("denial_ends_at")
        reach = self._document["denial_reach"]
        _require(type(reach) is int and reach >= 0, self._source, "denial_reach must be a number of words")
        return self.compiled(
            rf"(?<![\w'])(?:{self.alternatives('denials')})(?:\s+(?!(?:{ends})\b)[\w']+){{0,{reach}}}\s*$", "denials"
        )

    def compiled(self, expression: str, where: str) -> re.Pattern[str]:
        try:
            return re.compile(expression, re.IGNORECASE)
        except re.error as error:
            raise VocabularyError(f"{self._source}, {where}: not a regular expression: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VocabularyError(f"cannot read the words of the crisis rule {path}: {error}") from error
    well_formed = isinstance(document, dict) and set(document) == set(_FIELDS)
    _require(well_formed, path.name, f"must hold exactly {', '.join(_FIELDS)}")
    for field in _LISTS:
        _require_texts(document[field], f"{path.name}, {field}")
    pieces = document["pieces"]
    _require(isinstance(pieces, dict), path.name, "pieces must be names with patterns")
    _require_texts([*pieces.values(), document["speaker"], document["own_words"]], f"{path.name}, pieces and speaker")
    kinds = document["kinds"]
    _require(isinstance(kinds, dict) and set(kinds) == set(KINDS), path.name, f"kinds must be {', '.join(KINDS)}")
    return document


def _require_texts(value: Any, where: str) -> None:
    texts = isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)
    _require(texts, where, "must be texts, at least one, and none empty (quote words such as no and on)")


def _require(holds: bool, where: str, rule: str) -> None:
    if not holds:
        raise VocabularyError(f"{where}: {rule}")
