"""The language of the patterns in `words.yaml`, read into a tree. What it may hold is told at the top of that file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Alternatives",
    "Anything",
    "Chain",
    "End",
    "Gap",
    "Letters",
    "Look",
    "Name",
    "Node",
    "PatternError",
    "Repeat",
    "Signs",
    "joined",
    "parse",
]


class PatternError(ValueError):
    """A pattern is not written in the language."""


@dataclass(frozen=True, slots=True, eq=False)
class Letters:
    """A word or a piece of one: one of these texts, which may be empty (see also `alphabet.ANY_WORD`)."""

    texts: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """A character that is no part of a word: one of these."""

    signs: str


@dataclass(frozen=True, slots=True, eq=False)
class Anything:
    """Up to ten words or so, whichever, within the sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A word with a capital letter."""


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """What may stand between two words. Where an `optional` one `joins`, both may be one word ("any ?more")."""

    optional: bool = False
    joins: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """The end of a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What follows, or must not follow."""

    node: Node
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """From `least` to `most` times; as few as fit where `lazy`."""

    node: Node
    least: int
    most: int
    lazy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """One after the other."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Alternatives:
    """One of them, tried in this order."""

    nodes: tuple[Node, ...]


Node = Letters | Signs | Anything | Name | Gap | End | Look | Repeat | Chain | Alternatives

_MOST_JOINED = 2000
_MOST_REPEATED = 8  # of what may be repeated without a bound
_LEXEMES = re.compile(
    r"(?P<open>\(\?[:=!])|(?P<close>\))|(?P<bar>\|)|(?P<piece>\{[a-z_]+\})|(?P<count>(?:[?*+]|\{\d{1,2}(?:,\d{1,2})?\})\??)"
    r"|(?P<letters>\[[^\W_]+\])|(?P<signs>\[[',:\"]+\])|(?P<end>\$)|(?P<gap> )"
    # A count is for the last letter alone, which is then read apart.
    r"|(?P<word>\w+(?=\w(?:[?*+]|\{\d))|\w+(?!\w|[?*+]|\{\d)|\w)|(?P<sign>[',:\"])"
)


def parse(text: str, piece: Callable[[str], Node]) -> Node:
    """The tree of a pattern; `piece` gives that of a `{piece}`.

    Raises `PatternError` for what is not in the language.
    """
    lexemes = []
    place = 0
    while place < len(text):
        found = _LEXEMES.match(text, place)
        if not found:
            raise PatternError(f"not understood from {text[place:]!r} on")
        lexemes.append((str(found.lastgroup), found[0]))
        place = found.end()
    reader = _Reader(lexemes, piece)
    node = reader.alternatives()
    if reader.lexemes:
        raise PatternError("a closing bracket without an opening one")
    return node


def joined(first: Letters, second: Letters) -> Letters:
    """What may be read where one follows the other without a gap. Raises `PatternError` for too many."""
    if len(first.texts) * len(second.texts) > _MOST_JOINED:
        raise PatternError(f"too many words, joined of {sorted(first.texts)[:5]} and {sorted(second.texts)[:5]}...")
    return Letters(frozenset(left + right for left in first.texts for right in second.texts))


def _may_be_empty(node: Node) -> bool:
    return (isinstance(node, Repeat) and node.least == 0) or (isinstance(node, Letters) and "" in node.texts)


def _bounds(count: str) -> tuple[int, int]:
    """From and up to how often a count lets something stand."""
    least, comma, most = {"?": "0,1", "*": "0,", "+": "1,"}.get(count, count.strip("{}")).partition(",")
    upper = int(most or _MOST_REPEATED) if comma else int(least)
    if not max(1, int(least)) <= upper:
        raise PatternError(f"{count} counts from more to less, or to nothing")
    return int(least), upper


class _Reader:
    def __init__(self, lexemes: list[tuple[str, str]], piece: Callable[[str], Node]) -> None:
        self.lexemes = lexemes[::-1]
        self._piece = piece

    def _next_is(self, *kinds: str) -> bool:
        return bool(self.lexemes) and self.lexemes[-1][0] in kinds

    def alternatives(self) -> Node:
        nodes = [self._chain()]
        while self._next_is("bar"):
            self.lexemes.pop()
            nodes.append(self._chain())
        if all(isinstance(node, Letters) for node in nodes):
            return Letters(frozenset().union(*(node.texts for node in nodes if isinstance(node, Letters))))
        return Alternatives(tuple(nodes))

    def _chain(self) -> Node:
        nodes: list[Node] = []
        while self.lexemes and not self._next_is("bar", "close"):
            node = self._counted(self._one())
            last = nodes[-1] if nodes else None
            if isinstance(node, Letters) and isinstance(last, Letters):
                nodes[-1] = joined(last, node)
            elif isinstance(node, Gap) and node.optional:
                nodes.append(Gap(optional=True, joins=last is not None and not _may_be_empty(last)))
            else:
                nodes.append(node)
        return nodes[0] if len(nodes) == 1 else Chain(tuple(nodes))

    def _counted(self, node: Node) -> Node:
        if not self._next_is("count"):
            return node
        count = self.lexemes.pop()[1]
        if isinstance(node, Gap) and count == "?":
            return Gap(optional=True)
        lazy = len(count) > 1 and count.endswith("?")
        least, most = _bounds(count[:-1] if lazy else count)
        if isinstance(node, Letters) and (least, most) == (0, 1):
            return Letters(node.texts | {""})
        if isinstance(node, Letters) and most != 1:
            raise PatternError(f"letters cannot be repeated, so nothing for {count} to repeat")
        return Repeat(node, least, most, lazy)

    def _one(self) -> Node:
        kind, text = self.lexemes.pop()
        match kind:
            case "open":
                node = self.alternatives()
                if not self._next_is("close"):
                    raise PatternError("an opening bracket without a closing one")
                self.lexemes.pop()
                return node if text == "(?:" else Look(node, negated=text == "(?!")
            case "piece":
                return self._piece(text[1:-1])
            case "letters":
                return Letters(frozenset(text[1:-1].lower()))
            case "signs":
                return Signs(text[1:-1])
            case "end":
                return End()
            case "gap":
                return Gap()
            case "word":
                return Letters(frozenset({text.lower()}))
            case "sign":
                return Signs(text)
            case _:
                raise PatternError(f"nothing for {text} to repeat")
