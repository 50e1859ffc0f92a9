"""Synonym replacement by lexical substitution (paper, section III-B), from a table derived from WordNet 3.0.

The table holds a few thousand word forms, no model and no tagger: only words whose meanings, over all parts of speech,
are dominated by one WordNet sense, with substitutes that are dominated by the same sense and take the same inflection.
`tools.wordnet_synonyms` says how it is made. Everything else is kept: names, function words, negations, numbers,
contractions, unknown words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

__all__ = ["SynonymTable", "load_synonyms", "read_table", "replace_synonyms"]

# Parts of hyphenated words and of contractions are not matched.
_WORD = re.compile(r"(?<![\w'’-])[A-Za-z]+(?![\w'’-])")
_SENTENCE_START = re.compile(r"(^|[.!?:]\W*\s|^\W+)$")
_LONGEST_PHRASE = 4
# Particles that turn the verb before them into a phrasal verb: give up, react to.
_PARTICLES = frozenset(
    [
        "about",
        "across",
        "against",
        "along",
        "apart",
        "around",
        "aside",
        "at",
        "away",
        "back",
        "by",
        "down",
        "for",
        "forth",
        "in",
        "into",
        "of",
        "off",
        "on",
        "onto",
        "out",
        "over",
        "through",
        "to",
        "together",
        "under",
        "up",
        "upon",
        "with",
    ]
)
_ARTICLES = frozenset(("a", "an"))


@dataclass(frozen=True, slots=True)
class SynonymTable:
    """`substitutes` of each lower-case word form, the forms that are `verbs`, and `phrases` to be left alone."""

    substitutes: dict[str, tuple[str, ...]]
    verbs: frozenset[str]
    phrases: frozenset[str]


def read_table(text: str, phrases: str) -> SynonymTable:
    """Read the table: a line for each form, `form<TAB>part of speech<TAB>substitutes`; and a phrase on each line.

    Lines that start with `#` are comments.
    """
    rows = [line.split("\t") for line in _lines(text)]
    return SynonymTable(
        {form: tuple(substitutes.split()) for form, _, substitutes in rows},
        frozenset(form for form, part, _ in rows if part == "verb"),
        frozenset(_lines(phrases)),
    )


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line and not line.startswith("#"))


@cache
def load_synonyms() -> SynonymTable:
    """Return the table of this package, read at first use."""
    folder = resources.files("attune_training") / "artifacts" / "synonyms"
    return read_table(
        (folder / "synonyms.txt").read_text(encoding="utf-8"), (folder / "phrases.txt").read_text(encoding="utf-8")
    )


def replace_synonyms(text: str, share: float, random: np.random.Generator, table: SynonymTable | None = None) -> str:
    """Return the text with each replaceable word replaced with the probability `share`, keeping its capitalisation.

    `share` applies to the words that have a substitute, not to all words. Substitutes are drawn uniformly.

    Raises:
        ValueError: the share is outside 0..1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of words to replace must be from 0 to 1, not {share}")
    table = table or load_synonyms()
    words = list(_WORD.finditer(text))
    pieces, done = [], 0
    for index, word in enumerate(words):
        candidates = _candidates(table, text, words, index)
        if candidates and random.random() < share:
            substitute = candidates[random.integers(len(candidates))]
            pieces += [text[done : word.start()], _in_capitals_of(word[0], substitute)]
            done = word.end()
    return "".join([*pieces, text[done:]])


def _candidates(table: SynonymTable, text: str, words: Sequence[re.Match[str]], index: int) -> list[str]:
    """Return the valid substitutes of word `index`, in lower case."""
    word = words[index]
    form = word[0].lower()
    if form not in table.substitutes or _is_name(text, word) or _in_phrase(table, words, index):
        return []
    before = words[index - 1][0].lower() if index else ""
    after = words[index + 1][0].lower() if index + 1 < len(words) else ""
    if form in table.verbs and after in _PARTICLES:
        return []
    return [new for new in table.substitutes[form] if before not in _ARTICLES or _same_article(form, new)]


def _is_name(text: str, word: re.Match[str]) -> bool:
    """Return whether the word is capitalised for a reason other than the start of a sentence."""
    written = word[0]
    if written.islower():
        return False
    return not (written.istitle() and _SENTENCE_START.search(text[: word.start()]))


def _in_phrase(table: SynonymTable, words: Sequence[re.Match[str]], index: int) -> bool:
    """Return whether the word is part of a phrase that WordNet lists as one entry."""
    for start in range(max(0, index - _LONGEST_PHRASE + 1), index + 1):
        for end in range(max(index + 1, start + 2), min(len(words), start + _LONGEST_PHRASE) + 1):
            if " ".join(word[0].lower() for word in words[start:end]) in table.phrases:
                return True
    return False


def _same_article(form: str, substitute: str) -> bool:
    """Return whether a/an before the word stays correct; False for initial letters of ambiguous pronunciation."""
    first, second = form[0], substitute[0]
    return not {first, second} & set("uho") and (first in "aei") == (second in "aei")


def _in_capitals_of(written: str, substitute: str) -> str:
    return substitute.capitalize() if written.istitle() else substitute
