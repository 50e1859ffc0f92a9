"""Reads `words.yaml` once: what the crisis rule looks for, and what makes it think again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import CrisisKind
from attune_ensemble.speech.crisis.alphabet import ANY_LETTERS, ANY_WORD, NUMBER, Alphabet
from attune_ensemble.speech.crisis.grammar import (
    Alternatives,
    Anything,
    Chain,
    Letters,
    Look,
    Name,
    Node,
    PatternError,
    Repeat,
    Signs,
    parse,
)
from attune_ensemble.speech.crisis.tokens import BETWEEN, Expressions, Translator

__all__ = [
    "BUILT_IN",
    "KINDS",
    "WORDS_FILE",
    "KindWords",
    "Patterns",
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

_PERHAPS_BETWEEN = Repeat(BETWEEN, 0, 1, lazy=False)

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
    """A pattern of tokens. It is compiled when a text has it, as hardly any of those that people send does.

    `words` are sets of which one word each stands wherever it matches. `before` and `after` are put around its regular
    expression.
    """

    tree: Node
    words: tuple[frozenset[str], ...]
    expressions: Expressions
    before: str = ""
    after: str = ""

    @cached_property
    def needs(self) -> list[frozenset[str]]:
        """Sets of tokens of which one each is in whatever text has the pattern, the smallest first."""
        return sorted(map(self.expressions.alphabet.members, self.words), key=len)

    @cached_property
    def expression(self) -> str:
        """The regular expression."""
        return self.before + self.expressions.of(self.tree) + self.after

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """The regular expression, compiled."""
        return re.compile(self.expression)


@dataclass(frozen=True)
class Patterns:
    """Some patterns in their order, of which those that a text may have are found by its words."""

    all: tuple[TokenPattern, ...]

    @cached_property
    def _by_token(self) -> dict[str, list[int]]:
        """The patterns, by each token of the smallest set of which they need one; under "" those that need none."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for number, pattern in enumerate(self.all):
            for token in pattern.needs[0] if pattern.needs else [""]:
                numbers[token].append(number)
        return dict(numbers)

    def that_may_be_in(self, tokens: Iterable[str]) -> list[TokenPattern]:
        """The patterns that a text of these tokens may have."""
        present = {"", *tokens}
        numbers = {number for token in present for number in self._by_token.get(token, ())}
        likely = (self.all[number] for number in sorted(numbers))
        return [pattern for pattern in likely if not any(need.isdisjoint(present) for need in pattern.needs)]


@dataclass(frozen=True, slots=True)
class KindWords:
    """Of one kind: the patterns that find it, and those that only sound like it."""

    patterns: Patterns
    only_sounds_like: Patterns


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All of `words.yaml`: patterns of the tokens that `alphabet` makes of a text.

    `denial` and `speaker` are searched in the tokens before a find, up to it; `taken_back` matches those after it.
    """

    alphabet: Alphabet
    kinds: dict[str, KindWords]
    fillers: TokenPattern
    denial: TokenPattern
    taken_back: TokenPattern
    speaker: TokenPattern
    own_words: TokenPattern
    not_denials: Patterns
    settings: Patterns
    trivial: Patterns
    earnest: Patterns
    on_purpose: Patterns
    losses: Patterns
    after_a_loss: Patterns


@cache
def load_vocabulary(path: Path = WORDS_FILE) -> Vocabulary:
    """The vocabulary in `path`, read once.

    Raises `VocabularyError`, naming the place, for a missing or unknown field, a pattern that is no text or is not
    written in the patterns' language, an unknown piece, or one that holds itself.
    """
    document = _read(path)
    reader = _Reader(document, path.name)
    fields = {field: reader.patterns(document[field], field) for field in _SENTENCE_LISTS}
    return Vocabulary(
        alphabet=reader.alphabet,
        kinds={kind: _kind_words(kind, document["kinds"][kind], reader, path.name) for kind in KINDS},
        fillers=reader.made_of(Chain((_PERHAPS_BETWEEN, reader.fillers, _PERHAPS_BETWEEN))),
        denial=reader.denial(),
        taken_back=reader.made_of(Chain((_PERHAPS_BETWEEN, reader.any_of("taken_back")))),
        speaker=reader.made_of(Chain((reader.tree(document["speaker"], "speaker"), _PERHAPS_BETWEEN)), after=r"\Z"),
        own_words=reader.made_of(reader.tree(document["own_words"], "own_words")),
        **fields,
    )


def _kind_words(kind: str, entry: Any, reader: _Reader, source: str) -> KindWords:
    where = f"{source}, {kind}"
    fields = ("patterns", "only_sounds_like")
    _require(isinstance(entry, dict) and set(entry) == set(fields), where, f"must have exactly {' and '.join(fields)}")
    for field in fields:
        _require_texts(entry[field], f"{where}, {field}")
    return KindWords(*(reader.patterns(entry[field], f"{kind}, {field}") for field in fields))


class _Reader:
    """Turns the file's way of writing a pattern into trees of tokens."""

    def __init__(self, document: dict[str, Any], source: str) -> None:
        self.alphabet = Alphabet(document["not_names"])
        self._expressions = Expressions(self.alphabet)
        self._document = document
        self._source = source
        self._pieces: dict[str, Node] = dict(BUILT_IN)
        self._translator = Translator(self.alphabet)
        self.fillers = self.tree("|".join(document["fillers"]), "fillers")
        more = Repeat(Chain((self.fillers, BETWEEN)), 0, _MOST_FILLERS, lazy=False)
        self._translator = Translator(self.alphabet, Chain((BETWEEN, more)))
        for name in document["pieces"]:
            self._piece(name, "pieces", ())

    def _piece(self, name: str, where: str, within: tuple[str, ...]) -> Node:
        if name not in self._pieces:
            known = name in self._document["pieces"] and name not in within
            _require(known, f"{self._source}, {where}", f"no piece {{{name}}} can stand here")
            self._pieces[name] = self._parsed(self._document["pieces"][name], f"pieces, {name}", (*within, name))
        return self._pieces[name]

    def _parsed(self, text: str, where: str, within: tuple[str, ...] = ()) -> Node:
        try:
            return parse(" ".join(text.split()), lambda name: self._piece(name, where, within))
        except PatternError as error:
            raise VocabularyError(f"{self._source}, {where}: not a pattern: {error}: {text}") from error

    def tree(self, text: str, where: str) -> Node:
        """A pattern as a tree of tokens."""
        parsed = self._parsed(text, where)
        try:
            return self._translator.closed(parsed)
        except PatternError as error:
            raise VocabularyError(f"{self._source}, {where}: not a pattern: {error}: {text}") from error

    def made_of(self, tree: Node, before: str = "", after: str = "") -> TokenPattern:
        """A tree of tokens as a pattern."""
        return TokenPattern(tree, self._translator.needs(tree), self._expressions, before, after)

    def patterns(self, texts: list[str], where: str) -> Patterns:
        """Each text as a pattern."""
        return Patterns(tuple(self.made_of(self.tree(text, where)) for text in texts))

    def any_of(self, field: str) -> Node:
        """Any of the patterns in a list."""
        return Alternatives(tuple(self.tree(text, field) for text in self._document[field]))

    def denial(self) -> TokenPattern:
        """A denial and the words that it reaches over, up to the end of what is searched."""
        reach = self._document["denial_reach"]
        _require(type(reach) is int and reach >= 0, self._source, "denial_reach must be a number of words")
        space = Signs(" ")
        word = Alternatives((BUILT_IN["word"], Signs(NUMBER)))
        reached = Chain((space, Look(self.any_of("denial_ends_at"), negated=True), word))
        nodes = (self.any_of("denials"), Repeat(reached, 0, reach, lazy=False), Repeat(space, 0, 1, lazy=False))
        return self.made_of(Chain(nodes), rf"(?<!{ANY_LETTERS})", r"\Z")


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
