"""A text as a string with one character a token, so that a class of words is a class of characters.

    alphabet = Alphabet(not_names=["monday"])
    alphabet.add({"knife", "knives"})
    alphabet.encode("A knife.").chars            # five characters: two words, a gap, a stop
    alphabet.members({"knife", "knives"})        # the two characters that stand for these words

A pattern of words compiled to characters of letters tries its alternatives one after the other, letter by letter; as a
pattern of tokens it asks one set. That makes patterns some ten times smaller and their search fast.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

__all__ = [
    "ANY_LETTERS",
    "ANY_WORD",
    "GAPS",
    "MOST_PARTS",
    "NAME_MARK",
    "NUMBER",
    "STOP",
    "WHOLE_WORD",
    "Alphabet",
    "Tokens",
]

ANY_WORD = "\0"
"""In a word: at least one letter, whichever (`fantasi\\0`, `\\0ty`); alone, any word."""

NUMBER = "0"
"""The token of a number, or of a word that is not all letters from a to z."""

STOP = "."
"""The token of what ends a sentence."""

# The other tokens that are no words: a gap without and with a comma or dash, an apostrophe, all else.
_SPACE, _COMMA, _APOSTROPHE, _OTHER = " ", ",", "'", "?"
GAPS = _SPACE + _COMMA
"""The tokens of gaps between words."""

_TOKEN = re.compile(r"(\w+)|([\s,…—–-]+)|.")
_SPACED = re.compile(r"\s+|-")
_PLAIN_NAME = re.compile(r"[A-Z][a-z]+")
_LETTERS = re.compile(r"[a-z]+")

_FIRST, _LAST = 0x3400, 0xD7FF  # characters of words, all in the basic plane

NAME_MARK = "~"
"""An empty token after a word that may be a name."""

ANY_LETTERS = f"[{chr(_FIRST)}-{chr(_LAST)}{_APOSTROPHE}]"
"""A token of a word of letters: the word, or a part of it, or an apostrophe in it."""

MOST_PARTS = 5
"""Of how many parts, apostrophes among them, a word of letters is at most."""

WHOLE_WORD = f"{ANY_LETTERS}(?:{NAME_MARK}?{ANY_LETTERS}){{0,{MOST_PARTS - 1}}}"
"""All tokens of a word of letters: in `Anna's`, the mark of a name stands before the apostrophe."""


@dataclass(frozen=True)
class Tokens:
    """A text as `chars`, one a token; token t is `starts[t]:ends[t]` of the text."""

    chars: str
    starts: list[int]
    ends: list[int]

    @cached_property
    def stops(self) -> list[int]:
        """The places of the stops, in order."""
        return [found.start() for found in re.finditer(re.escape(STOP), self.chars)]

    def sentence(self, token: int) -> tuple[int, int]:
        """First token of the sentence of `token`, and the one after its last."""
        following = bisect_right(self.stops, token)
        first = self.stops[following - 1] + 1 if following else 0
        return first, self.stops[following] if following < len(self.stops) else len(self.chars)


class Alphabet:
    """Which character stands for which word. Words that no pattern names share one for each beginning or ending.

    Words are taken in while patterns are read (`add`); `members` and `encode` are for when all are read.
    """

    def __init__(self, not_names: Iterable[str]) -> None:
        self._not_names = frozenset(not_names)
        self._words: dict[str, int] = {}
        self._affixes: dict[str, int] = {}
        self._next = _FIRST + 1  # the first is any word that no pattern names
        self.members = cache(self._members)

    def add(self, words: Iterable[str]) -> None:
        """Takes in words, lower case, `ANY_WORD` in them."""
        for word in words:
            known = self._affixes if ANY_WORD in word else self._words
            if word not in known:
                if self._next > _LAST:
                    raise OverflowError("too many different words")
                known[word] = self._next
                self._next += 1

    def _members(self, words: frozenset[str]) -> frozenset[str]:
        """The characters of the tokens that are one of these words, all of them taken in."""
        own = (self._bearers(word) if ANY_WORD in word else (self._words[word],) for word in words)
        return frozenset(chr(code) for codes in own for code in codes)

    def _bearers(self, affix: str) -> set[int]:
        """What has a beginning or an ending: words and other affixes that are taken in, and all words that are not."""
        whole = _affix(affix)
        known = {code for word, code in self._words.items() if whole.fullmatch(word)}
        known |= {code for other, code in self._affixes.items() if whole.fullmatch(other.replace(ANY_WORD, "zz"))}
        return known | {self._affixes[affix]}

    @cached_property
    def _affix_finder(self) -> tuple[re.Pattern[str], list[int]]:
        """A group for each beginning or ending, the longest first, which are the most special; their characters."""
        ordered = sorted(self._affixes, key=lambda affix: (-len(affix), affix))
        groups = "|".join(f"({_affix(affix).pattern})" for affix in ordered) or "(?!)"
        return re.compile(groups), [self._affixes[affix] for affix in ordered]

    def _char(self, word: str) -> str:
        lower = word.lower()
        if lower in self._words:
            return chr(self._words[lower])
        if not _LETTERS.fullmatch(lower):
            return NUMBER
        pattern, chars = self._affix_finder
        found = pattern.fullmatch(lower)
        return chr(chars[found.lastindex - 1] if found and found.lastindex else _FIRST)

    def _may_be_name(self, word: str) -> bool:
        return bool(_PLAIN_NAME.fullmatch(word)) and word.lower() not in self._not_names

    def encode(self, text: str) -> Tokens:
        """The tokens of a text. Takes time in proportion to its length."""
        chars, starts, ends = [], [], []
        for found in _TOKEN.finditer(text):
            starts.append(found.start())
            ends.append(found.end())
            if found[1]:
                chars.append(self._char(found[1]))
                if self._may_be_name(found[1]):
                    chars.append(NAME_MARK)
                    starts.append(found.end())
                    ends.append(found.end())
            elif found[2]:
                chars.append(_SPACE if _SPACED.fullmatch(found[2]) else _COMMA)
            else:
                chars.append(_SINGLE.get(found[0], _OTHER))
        return Tokens("".join(chars), starts, ends)


_SINGLE = dict.fromkeys(".!?;\n", STOP) | {"'": _APOSTROPHE, ":": ":", '"': '"'}


def _affix(affix: str) -> re.Pattern[str]:
    return re.compile("[a-z]+".join(re.escape(part) for part in affix.split(ANY_WORD)))
