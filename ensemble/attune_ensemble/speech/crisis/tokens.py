"""Patterns of `words.yaml` as trees of whole tokens, and these as regular expressions in an `Alphabet`'s characters.

Every repetition is bounded, so what a pattern looks at from one place is, too: a search takes time in proportion to the
text, whatever stands in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from attune_ensemble.speech.crisis.alphabet import ANY_LETTERS, ANY_WORD, GAPS, NAME_MARK, STOP, WHOLE_WORD, Alphabet
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
    joined,
)

__all__ = ["BETWEEN", "MOST_OF_ANYTHING", "MOST_SIGNS", "Expressions", "Translator"]

MOST_OF_ANYTHING = 20
"""How many tokens `Anything` is at most."""

MOST_SIGNS = 2
"""How many signs stand between two words at most."""

BETWEEN = Gap()
"""In a tree of tokens: the signs of gaps, and no words."""

_MARK = f"{NAME_MARK}?"
_GAP_SIGNS = f"{_MARK}[{GAPS}]{{1,{MOST_SIGNS}}}"
_ANYTHING = f"[^{STOP}]{{0,{MOST_OF_ANYTHING}}}"
_END = rf"{_MARK}(?![^{STOP}])"
_NOTHING = Letters(frozenset({""}))


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to read a node: `first`, a piece of a word; `middle`, whole tokens; `last`, again a piece of a word.

    Without a `middle`, it is `first` alone.
    """

    first: Letters
    middle: tuple[Node, ...] | None = None
    last: Letters = _NOTHING


class Translator:
    """Turns trees of patterns into trees of tokens; `gap`, one of those, is what stands between words.

    Words are whole tokens, so pieces of words side by side ("any", an optional gap, "more") are joined first. The words
    that come out are taken into the alphabet.
    """

    def __init__(self, alphabet: Alphabet, gap: Node = BETWEEN) -> None:
        self._alphabet = alphabet
        self._gap = gap
        self._optional_gap = Repeat(gap, 0, 1, lazy=False)
        self.closed = cache(self._closed)
        self.needs = cache(self._find_needs)
        self._edges = cache(self._find_edges)

    def _closed(self, node: Node) -> Node:
        """The tokens of a node that no piece of a word stands beside."""
        match node:
            case Letters(texts):
                return self._word(texts)
            case Gap(optional):
                return self._optional_gap if optional else self._gap
            case Look(inner, negated):
                return Look(self.closed(inner), negated)
            case Repeat(inner, least, most, lazy):
                return Repeat(self.closed(inner), least, most, lazy)
            case Alternatives(nodes):
                return self._any_of(_Form(node) if isinstance(node, Letters) else self._whole(node) for node in nodes)
            case Chain(nodes):
                return Chain(tuple(self._run(run) for run in self._runs(nodes)))
            case _:
                return node

    def _find_needs(self, tokens: Node) -> tuple[frozenset[str], ...]:
        """Of each of these sets, one word stands in whatever a tree of tokens matches."""
        match tokens:
            case Letters(texts) if "" not in texts and not any(ANY_WORD in text for text in texts):
                return (texts,)
            case Repeat(inner, least, _, _) if least > 0:
                return self.needs(inner)
            case Alternatives(nodes):
                branches = [self.needs(inner) for inner in nodes]
                return (frozenset().union(*(min(sets, key=len) for sets in branches)),) if all(branches) else ()
            case Chain(nodes):
                return tuple(words for inner in nodes for words in self.needs(inner))
            case _:
                return ()

    def _word(self, texts: frozenset[str]) -> Letters:
        """One word of these, or none if the empty text is among them."""
        if ANY_WORD not in texts:
            self._alphabet.add(texts - {""})
        return Letters(texts)

    def _whole(self, node: Node) -> _Form:
        return _Form(_NOTHING, (self.closed(node),))

    def _any_of(self, forms: Iterable[_Form]) -> Node:
        """Alternatives in their order; words that stand side by side are one class."""
        merged: list[_Form] = []
        for form in forms:
            if form.middle is None and merged and merged[-1].middle is None:
                merged[-1] = _Form(Letters(merged[-1].first.texts | form.first.texts))
            else:
                merged.append(form)
        nodes = [self._spelt(form) for form in merged]
        return nodes[0] if len(nodes) == 1 else Alternatives(tuple(nodes))

    def _spelt(self, form: _Form) -> Node:
        nodes = (self._word(form.first.texts), *(form.middle or ()), self._word(form.last.texts))
        kept = tuple(node for node in nodes if not (isinstance(node, Letters) and node.texts == {""}))
        return kept[0] if len(kept) == 1 else Chain(kept)

    def _run(self, nodes: tuple[Node, ...]) -> Node:
        return self.closed(nodes[0]) if len(nodes) == 1 else self._any_of(self._chained(nodes))

    def _chained(self, nodes: Iterable[Node]) -> list[_Form]:
        return self._products(*(self._forms(node) for node in nodes))

    def _products(self, *parts: list[_Form]) -> list[_Form]:
        forms = [_Form(_NOTHING)]
        for part in parts:
            forms = [self._follow(left, right) for left in forms for right in part]
        return forms

    def _follow(self, left: _Form, right: _Form) -> _Form:
        """One form after another, the pieces of words between them joined."""
        if left.middle is None:
            return _Form(joined(left.first, right.first), right.middle, right.last)
        met = joined(left.last, right.first)
        if right.middle is None:
            return _Form(left.first, left.middle, met)
        return _Form(left.first, (*left.middle, self._word(met.texts), *right.middle), right.last)

    def _forms(self, node: Node) -> list[_Form]:
        """Every way to read a node that a piece of a word may stand beside."""
        match node:
            case Letters():
                return [_Form(node)]
            case Gap(joins=True):
                return [_Form(_NOTHING, (self._gap,)), _Form(_NOTHING)]
            case Alternatives(nodes):
                return [form for inner in nodes for form in self._forms(inner)]
            case Chain(nodes):
                runs = self._runs(nodes, open_ends=True)
                if len(runs) == 1:
                    return self._chained(nodes)
                middle = tuple(self._run(run) for run in runs[1:-1])
                return self._products(self._chained(runs[0]), [_Form(_NOTHING, middle)], self._chained(runs[-1]))
            case Repeat(inner, 0, 1, lazy):
                forms = [*self._forms(inner), _Form(_NOTHING)]
                return forms[::-1] if lazy else forms
            case _:
                return [self._whole(node)]

    def _runs(self, nodes: tuple[Node, ...], open_ends: bool = False) -> list[tuple[Node, ...]]:
        """The nodes in groups, cut wherever no two pieces of words can meet; some stand around all with `open_ends`."""
        runs: list[tuple[Node, ...]] = []
        first = 0
        for cut in range(1, len(nodes)):
            before = self._edge(nodes[first:cut][::-1], 1, open_ends and first == 0)
            if not (before and self._edge(nodes[cut:], 0, open_ends)):
                runs.append(nodes[first:cut])
                first = cut
        return [*runs, nodes[first:]]

    def _edge(self, nodes: Iterable[Node], side: int, beyond: bool) -> bool:
        """Whether a piece of a word can stand at the edge of the nodes, which are given from that edge on.

        `beyond` is whether one can behind them all, where all can be empty.
        """
        for node in nodes:
            edges = self._edges(node)
            if edges[side]:
                return True
            if not edges[2]:
                return False
        return beyond

    def _find_edges(self, node: Node) -> tuple[bool, bool, bool]:
        """Whether a node can begin with a piece of a word, end with one, and be empty."""
        match node:
            case Letters(texts):
                word = texts != {""}
                return word, word, "" in texts
            case Gap():
                return False, False, node.joins
            case Repeat(inner, least, _, _):
                first, last, empty = self._edges(inner)
                return first, last, empty or least == 0
            case Alternatives(nodes):
                edges = [self._edges(inner) for inner in nodes]
                return any(e[0] for e in edges), any(e[1] for e in edges), any(e[2] for e in edges)
            case Chain(nodes):
                empty = all(self._edges(inner)[2] for inner in nodes)
                return self._edge(nodes, 0, False), self._edge(nodes[::-1], 1, False), empty
            case _:
                return False, False, False


class Expressions:
    """Regular expressions of trees of tokens, for when all words are in the alphabet."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet
        self.of = cache(self._of)  # a gap or a piece stands in many a tree

    def _of(self, tokens: Node) -> str:
        """The regular expression of a tree."""
        match tokens:
            case Letters(texts):
                return self._word(texts)
            case Signs(signs):
                return _MARK + (signs if len(signs) == 1 else f"[{signs}]")
            case Name():
                return f"{ANY_LETTERS}{NAME_MARK}"
            case Anything():
                return _ANYTHING
            case Gap():
                return _GAP_SIGNS
            case End():
                return _END
            case Look(inner, negated):
                return f"(?{'!' if negated else '='}{self.of(inner)})"
            case Repeat(inner, least, most, lazy):
                count = "?" if (least, most) == (0, 1) else f"{{{least},{most}}}"
                return f"(?:{self.of(inner)}){count}{'?' if lazy else ''}"
            case Alternatives(nodes):
                return f"(?:{'|'.join(map(self.of, nodes))})"
            case Chain(nodes):
                return "".join(map(self.of, nodes))

    def _word(self, texts: frozenset[str]) -> str:
        """One word of these, or none if the empty text is among them."""
        words = texts - {""}
        if ANY_WORD in words:
            one = WHOLE_WORD
        elif words:
            one = _character_class(self.alphabet.members(words))
        else:
            return ""
        return f"(?:{one})?" if "" in texts else one


def _character_class(chars: frozenset[str]) -> str:
    """A class of these characters, neighbours as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    inside = "".join(chr(first) if first == last else f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return inside if len(chars) == 1 else f"[{inside}]"
