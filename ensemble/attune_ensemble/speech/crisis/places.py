"""Where trees of tokens stand in a text, found at all places at once and without compiling anything.

    places = Places(alphabet.encode("So it goes.").chars, alphabet)
    places.of(tree)      # [2]: the tree can be read from token 2 on, and from no other

A set of places is a whole number with a bit for each, and a node takes the places after it to those before it, by
shifts and by "and"s of such numbers (Cameron et al., "Bitwise data parallelism in regular expression matching", PACT
2014). So a regular expression is compiled, which takes a hundred times as long, for the few patterns alone that a text
has. Takes time in proportion to the text's length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import reduce
from operator import or_

from attune_ensemble.speech.crisis.alphabet import (
    ANY_LETTERS,
    ANY_WORD,
    GAPS,
    MOST_PARTS,
    NAME_MARK,
    STOP,
    Alphabet,
)
from attune_ensemble.speech.crisis.grammar import (
    Alternatives,
    Anything,
    Chain,
    End,
    Gap,
    Letters,
    Look,
    Name,
    Node,
    Repeat,
    Signs,
)
from attune_ensemble.speech.crisis.tokens import MOST_OF_ANYTHING, MOST_SIGNS

__all__ = ["Places"]

_ANY_LETTERS = re.compile(ANY_LETTERS)


def _by_char(chars: str) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, char in enumerate(chars):
        places[char].append(place)
    return places


class Places:
    """The places of one text: place p is before token p, and the last one is its end."""

    def __init__(self, chars: str, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._size = len(chars)
        self._everywhere = (2 << self._size) - 1
        # What was looked for once, in dictionaries and not behind `functools.cache`, so that no cycle keeps them.
        self._of_token = {char: self._number(places) for char, places in _by_char(chars).items()}
        self._of_words: dict[frozenset[str], int] = {}
        self._of_node: dict[Node, int] = {}
        self._branches: dict[Node, list[Node]] = {}
        self.present = frozenset(self._of_token)
        self._marks = self._standing(NAME_MARK)
        self._gaps = self._standing(GAPS)
        stops = self._standing(STOP)
        self._no_stops = self._everywhere & ~stops
        self._ends = stops | 1 << self._size
        self._letters = self._standing(char for char in self.present if _ANY_LETTERS.fullmatch(char))

    def of(self, node: Node) -> list[int]:
        """The places from which a tree of tokens can be read, in order."""
        starts = self._starts(node)
        return [bit.start() for bit in re.finditer("1", f"{starts:b}"[::-1])] if starts else []

    def _number(self, places: Iterable[int]) -> int:
        bits = bytearray(self._size // 8 + 1)
        for place in places:
            bits[place >> 3] |= 1 << (place & 7)
        return int.from_bytes(bits, "little")

    def _standing(self, chars: Iterable[str]) -> int:
        """Where tokens of these characters stand."""
        return reduce(or_, (self._of_token.get(char, 0) for char in chars), 0)

    def _words(self, words: frozenset[str]) -> int:
        if words not in self._of_words:
            self._of_words[words] = self._standing(self._alphabet.members(words) & self.present)
        return self._of_words[words]

    def _starts(self, node: Node) -> int:
        if node not in self._of_node:
            self._of_node[node] = self._before(node, self._everywhere)
        return self._of_node[node]

    def _there(self, alternatives: Alternatives) -> list[Node]:
        """Those that the text has at all: a piece is in many patterns, and is looked for once."""
        if alternatives not in self._branches:
            self._branches[alternatives] = [node for node in alternatives.nodes if self._starts(node)]
        return self._branches[alternatives]

    def _before(self, node: Node, after: int) -> int:
        """The places from which a node can be read up to one of the places `after`."""
        match node:
            case Letters(texts):
                return self._before_word(texts, after)
            case Chain(nodes):
                for inner in reversed(nodes):
                    after = self._before(inner, after) if after else 0
                return after
            case Alternatives():
                found = 0
                for inner in self._there(node):
                    found |= self._before(inner, after)
                return found
            case Repeat(inner, least, most, _):
                return self._before_repeated(inner, least, most, after)
            case Look(inner, negated):
                ahead = self._starts(inner)
                return after & ~ahead if negated else after & ahead
            case Gap():
                one = after >> 1 & self._gaps
                for _ in range(MOST_SIGNS - 1):
                    one |= one >> 1 & self._gaps
                return self._marked(one)
            case Signs(signs):
                return self._marked(after >> 1 & self._standing(signs))
            case Name():
                return (after >> 1 & self._marks) >> 1 & self._letters
            case Anything():
                found = after
                for _ in range(MOST_OF_ANYTHING):
                    after = after >> 1 & self._no_stops
                    found |= after
                return found
            case End():
                return self._marked(after & self._ends)

    def _before_word(self, texts: frozenset[str], after: int) -> int:
        """Before one word of these, or none if the empty text is among them."""
        if ANY_WORD in texts:
            found = part = after >> 1 & self._letters
            for _ in range(MOST_PARTS - 1):
                part = self._marked(part) >> 1 & self._letters
                found |= part
        else:
            found = after >> 1 & self._words(texts - {""})
        return found | after if "" in texts else found

    def _before_repeated(self, node: Node, least: int, most: int, after: int) -> int:
        found = 0 if least else after
        if not self._starts(node):
            return found
        for count in range(1, most + 1):
            after = self._before(node, after)
            if not after:
                break
            if count >= least:
                found |= after
        return found

    def _marked(self, places: int) -> int:
        """These places, and those before a mark of a name that stands before them."""
        return places | (places >> 1 & self._marks)
