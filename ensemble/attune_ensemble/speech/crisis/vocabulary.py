"""Reads `words.yaml` and compiles it once: what the crisis rule looks for, and what makes it think again."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import CrisisKind
from attune_ensemble.speech.crisis.alphabet import ANY_LETTERS, ANY_WORD, NAME_MARK, NUMBER, WHOLE_WORD, Alphabet
from attune_ensemble.speech.crisis.grammar import Anything, Letters, Name, Node, PatternError, parse
from attune_ensemble.speech.crisis.tokens import GAP_SIGNS, Translator

__all__ = [
    "BUILT_IN",
    "KINDS",
    "WORDS_FILE",
    "KindWords",
    "TokenPattern",
    "Vocabulary",
    "VocabularyError",
    "load_vocabulary",
]

WORDS_FILE = Path(__file__).with_name("words.yaml")
"""The patterns that ship with Attune."""

KINDS = tuple(kind.value for kind in CrisisKind)
"""What a flag may say, in the order in which flags at one place are told."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast, where it is there
_MOST_FILLERS = 4  # in one gap
BUILT_IN: dict[str, Node] = {
    "word": Letters(frozenset({ANY_WORD})),
    "name": Name(),
    "any": Anything(),
}
"""The pieces that are there without being told in the file."""

_LISTS = (
    "fillers",
    "not_names",
    "denials",
    "denial_ends_at",
    "not_denials",
    "taken_back",
    "settings",
    "trivial",
    "earnest",
    "on_purpose",
    "losses",
    "after_a_loss",
)
_SENTENCE_LISTS = ("not_denials", "settings", "trivial", "earnest", "on_purpose", "losses", "after_a_loss")
_FIELDS = (*_LISTS, "pieces", "denial_reach", "speaker", "own_words", "kinds")


class VocabularyError(AttuneError):
    """The file of the crisis rule's words cannot be used as it is."""


@dataclass(frozen=True)
class TokenPattern:
    """A pattern of tokens. It is compiled when the first text needs it, which most of those people send never do."""

    expression: str
    needs: tuple[frozenset[str], ...]
    alphabet: Alphabet

    def may_be_in(self, chars: Set[str]) -> bool:
        """Whether a text of these tokens can hold it at all."""
        return not any(need.isdisjoint(chars) for need in self.needs)

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """The regular expression."""
        return re.compile(self.alphabet.resolve(self.expression))


@dataclass(frozen=True, slots=True)
class KindWords:
    """Of one kind: the patterns that find it, and those that only sound like it."""

    patterns: tuple[TokenPattern, ...]
    only_sounds_like: tuple[TokenPattern, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All of `words.yaml`: patterns of the tokens that `alphabet` makes of a text.

    `denial` and `speaker` are searched in the tokens before a find, up to it; `taken_back` matches those after it.
    """

    alphabet: Alphabet
    kinds: dict[str, KindWords]
    fillers: TokenPattern
    denial: TokenPattern
    not_denials: TokenPattern
    taken_back: TokenPattern
    settings: TokenPattern
    trivial: TokenPattern
    earnest: TokenPattern
    on_purpose: TokenPattern
    losses: TokenPattern
    after_a_loss: TokenPattern
    speaker: TokenPattern
    own_words: TokenPattern


@cache
def load_vocabulary(path: Path = WORDS_FILE) -> Vocabulary:
    """The vocabulary in `path`, read once.

    Raises `VocabularyError`, naming the place, for a missing or unknown field, a pattern that is no text or is not
    written in the patterns' language, an unknown piece, or one that holds itself.
    """
    document = _read(path)
    reader = _Reader(document, path.name)
    gap = f"(?:{GAP_SIGNS})?"
    expressions = {
        "fillers": f"{gap}{reader.fillers}{gap}",
        "denial": reader.denial(),
        "taken_back": f"{gap}{reader.any_of('taken_back')}",
        "speaker": rf"{reader.expression(document['speaker'], 'speaker')}{gap}\Z",
        "own_words": reader.expression(document["own_words"], "own_words"),
        **{field: reader.any_of(field) for field in _SENTENCE_LISTS},
    }
    return Vocabulary(
        alphabet=reader.alphabet,
        kinds={kind: _kind_words(kind, document["kinds"][kind], reader, path.name) for kind in KINDS},
        **{field: TokenPattern(expression, (), reader.alphabet) for field, expression in expressions.items()},
    )


def _kind_words(kind: str, entry: Any, reader: _Reader, source: str) -> KindWords:
    where = f"{source}, {kind}"
    fields = ("patterns", "only_sounds_like")
    _require(isinstance(entry, dict) and set(entry) == set(fields), where, f"must have exactly {' and '.join(fields)}")
    for field in fields:
        _require_texts(entry[field], f"{where}, {field}")
    return KindWords(*(tuple(reader.pattern(text, f"{kind}, {field}") for text in entry[field]) for field in fields))


class _Reader:
    """Turns the file's way of writing a pattern into regular expressions of tokens."""

    def __init__(self, document: dict[str, Any], source: str) -> None:
        self.alphabet = Alphabet(document["not_names"])
        self._document = document
        self._source = source
        self._pieces: dict[str, Node] = dict(BUILT_IN)
        self._translator = Translator(self.alphabet)
        self.fillers = f"(?:{self.expression('|'.join(document['fillers']), 'fillers')})"
        gap = f"{GAP_SIGNS}(?:{self.fillers}{GAP_SIGNS}){{0,{_MOST_FILLERS}}}"
        self._translator = Translator(self.alphabet, gap)
        for name in document["pieces"]:
            self._piece(name, "pieces", ())

    def _piece(self, name: str, where: str, within: tuple[str, ...]) -> Node:
        if name not in self._pieces:
            known = name in self._document["pieces"] and name not in within
            _require(known, f"{self._source}, {where}", f"no piece {{{name}}} can stand here")
            self._pieces[name] = self._tree(self._document["pieces"][name], f"pieces, {name}", (*within, name))
        return self._pieces[name]

    def _tree(self, text: str, where: str, within: tuple[str, ...] = ()) -> Node:
        try:
            return parse(" ".join(text.split()), lambda name: self._piece(name, where, within))
        except PatternError as error:
            raise VocabularyError(f"{self._source}, {where}: not a pattern: {error}: {text}") from error

    def expression(self, text: str, where: str) -> str:
        """The regular expression of a pattern."""
        return self.pattern(text, where).expression

    def pattern(self, text: str, where: str) -> TokenPattern:
        """A pattern, and what a text needs for it."""
        tree = self._tree(text, where)
        try:
            needs = tuple(self.alphabet.chars(words) for words in self._translator.needs(tree))
            return TokenPattern(self._translator.closed(tree), needs, self.alphabet)
        except PatternError as error:
            raise VocabularyError(f"{self._source}, {where}: not a pattern: {error}: {text}") from error

    def any_of(self, field: str) -> str:
        """The regular expression of any of the patterns in a list."""
        return f"(?:{'|'.join(self.expression(text, field) for text in self._document[field])})"

    def denial(self) -> str:
        """A denial and the words that it reaches over, up to the end of what is searched."""
        reach = self._document["denial_reach"]
        _require(type(reach) is int and reach >= 0, self._source, "denial_reach must be a number of words")
        word = f"(?!{self.any_of('denial_ends_at')})(?:{WHOLE_WORD}|{NUMBER})"
        space = f"{NAME_MARK}? "
        return rf"(?<!{ANY_LETTERS}){self.any_of('denials')}(?:{space}{word}){{0,{reach}}}(?:{space})?\Z"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VocabularyError(f"cannot read the words of the crisis rule {path}: {error}") from error
    well_formed = isinstance(document, dict) and set(document) == set(_FIELDS)
    _require(well_formed, path.name, f"must hold exactly {', '.join(_FIELDS)}")
    for field in _LISTS:
        _require_texts(document[field], f"{path.name}, {field}")
    pieces = document["pieces"]
    _require(isinstance(pieces, dict), path.name, "pieces must be names with patterns")
    for name in BUILT_IN.keys() & pieces.keys():
        raise VocabularyError(f"{path.name}, pieces: {{{name}}} is built in")
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
