"""Derive the table of synonyms from WordNet 3.0; run by hand when the rules or the excluded words change.

    python -m tools.wordnet_synonyms --wordnet DIR --output training/attune_training/artifacts/synonyms

DIR holds `data.*`, `index.*` and `cntlist.rev` (Debian's package wordnet-base puts them in /usr/share/wordnet).
Inflection comes from lemminflect (0.2.3, MIT), which is needed here only.

A word is replaceable if, over all lemmas of its form, one sense has at least half, and its part of speech nine tenths,
of the occurrences that WordNet counted in tagged text; so no tagger is needed. A substitute is a single lower-case word
of the same sense, which has at least half of its occurrences too. Verbs must share their sentence frames, nouns their
countability, and an ambiguous inflected form must be ambiguous in the same way in its substitute. Manual exclusions are
in `left_out.txt`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LeftOut", "Morphology", "WordNet", "main", "read_left_out", "read_wordnet", "table_lines"]

_FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
# WordNet's numbers of the parts of speech in a sense key; 5 is a satellite adjective.
_KEY_PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_TAGS = {
    "noun": ("NN", "NNS"),
    "verb": ("VB", "VBZ", "VBD", "VBN", "VBG"),
    "adj": ("JJ", "JJR", "JJS"),
    "adv": ("RB", "RBR", "RBS"),
}
_BASE_TAGS = ("NN", "VB", "JJ", "RB")
_PLAIN_WORD = re.compile("[a-z]{3,}")

_DOMINANT_SHARE = 0.5
_DOMINANT_PART_SHARE = 0.9
_FEWEST_COUNTED = 2
# A sense with a count of zero may still occur.
_UNSEEN = 0.5

Lemma = tuple[str, str]  # word, part of speech
Sense = tuple[str, str]  # part of speech, synset


@dataclass(frozen=True, slots=True)
class WordNet:
    """`senses` of a lemma in order, how often each was `counted`, the `words` of a sense, and verbs' frames."""

    senses: dict[Lemma, tuple[str, ...]]
    counted: dict[tuple[str, str, int], int]
    words: dict[Sense, tuple[str, ...]]
    frames: dict[tuple[str, str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Morphology:
    """`inflect` gives a lemma's form for a Penn tag, or None; `lemmas` gives all lemmas that a form may be of."""

    inflect: Callable[[str, str], str | None]
    lemmas: Callable[[str], Iterable[Lemma]]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Manual exclusions: forms that are not replaced, forms that are no substitutes, and pairs."""

    replaced: frozenset[str]
    substitutes: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    def allows(self, form: str, substitute: str) -> bool:
        """Return whether `form` may be replaced by `substitute`."""
        struck = form in self.replaced or substitute in self.substitutes
        return not struck and (form, substitute) not in self.pairs


def read_left_out(text: str) -> LeftOut:
    """Read the exclusions: `word`, `word ->`, `-> word` or `word -> word` on a line."""
    replaced, substitutes, pairs = set(), set(), set()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        form, arrow, substitute = (part.strip() for part in line.partition("->"))
        if form and substitute:
            pairs.add((form, substitute))
            continue
        if form:
            replaced.add(form)
        if substitute or not arrow:
            substitutes.add(substitute or form)
    return LeftOut(frozenset(replaced), frozenset(substitutes), frozenset(pairs))


def read_wordnet(folder: Path) -> WordNet:
    """Read WordNet's database files (their format: WordNet's manual page wndb).

    Raises:
        FileNotFoundError: a file of the database is missing.
    """
    senses: dict[Lemma, tuple[str, ...]] = {}
    words: dict[Sense, tuple[str, ...]] = {}
    frames: dict[tuple[str, str], frozenset[str]] = {}
    for part in _FILES:
        for fields in _records(folder / f"index.{part}"):
            senses[fields[0], part] = tuple(fields[-int(fields[2]) :])
        for fields in _records(folder / f"data.{part}"):
            count = int(fields[3], 16)
            words[part, fields[0]] = tuple(re.sub(r"\(.*\)", "", word) for word in fields[4 : 4 + 2 * count : 2])
            if part == "verb":
                frames.update(_frames(fields, words[part, fields[0]]))
    return WordNet(senses, dict(_counts(folder / "cntlist.rev")), words, frames)


def _records(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line before its gloss; the licence's lines start with a space."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            yield line.split(" | ")[0].split()


def _frames(fields: list[str], words: tuple[str, ...]) -> dict[tuple[str, str], frozenset[str]]:
    """Return the sentence frames of each word of a verb's synset."""
    pointers = 4 + 2 * len(words)
    listed = fields[pointers + 1 + 4 * int(fields[pointers]) :]
    found: dict[str, set[str]] = {word: set() for word in words}
    for frame, number in zip(listed[2::3], listed[3::3], strict=True):
        position = int(number, 16)  # 0: every word of the synset
        for word in words if position == 0 else words[position - 1 : position]:
            found[word].add(frame)
    return {(fields[0], word): frozenset(numbers) for word, numbers in found.items()}


def _counts(path: Path) -> Iterator[tuple[tuple[str, str, int], int]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, sense_number, count = line.split()
        word, _, rest = key.partition("%")
        yield (word, _KEY_PARTS[rest[0]], int(sense_number)), int(count)


def table_lines(wordnet: WordNet, morphology: Morphology, left_out: LeftOut) -> list[str]:
    """Return the table's lines, sorted: form, part of speech, substitutes."""
    rows: dict[Lemma, set[str]] = defaultdict(set)
    for (word, part), substitute, sense in _lemma_pairs(wordnet):
        if not left_out.allows(word, substitute):
            continue
        if part == "noun" and not _same_countability(morphology, word, substitute):
            continue
        for form, new in _form_pairs(morphology, word, substitute, part):
            if left_out.allows(form, new) and _may_stand_for(wordnet, morphology, new, form, sense):
                rows[form, part].add(new)
    return [f"{form}\t{part}\t{' '.join(sorted(new))}" for (form, part), new in sorted(rows.items())]


def _may_stand_for(wordnet: WordNet, morphology: Morphology, new: str, form: str, sense: Sense) -> bool:
    """Return whether the sense dominates both forms, and the replaced one has an unambiguous part of speech."""
    lemmas = list(morphology.lemmas(form))
    both = {_dominant(wordnet, lemmas), _dominant(wordnet, morphology.lemmas(new))}
    return both == {sense} and _is_of_part(wordnet, lemmas, sense[0])


def _lemma_pairs(wordnet: WordNet) -> Iterator[tuple[Lemma, str, Sense]]:
    """Yield each word with a substitute of the sense that dominates both."""
    for word in sorted({word for word, _ in wordnet.senses if _PLAIN_WORD.fullmatch(word)}):
        sense = _dominant(wordnet, _entries(wordnet, word))
        if sense is None:
            continue
        part, synset = sense
        for new in wordnet.words[sense]:
            if new == word or not _PLAIN_WORD.fullmatch(new) or _dominant(wordnet, _entries(wordnet, new)) != sense:
                continue
            if part != "verb" or wordnet.frames[synset, word] == wordnet.frames[synset, new]:
                yield (word, part), new, sense


def _entries(wordnet: WordNet, word: str) -> list[Lemma]:
    return [(word, part) for part in _FILES if (word, part) in wordnet.senses]


def _dominant(wordnet: WordNet, lemmas: Iterable[Lemma]) -> Sense | None:
    """Return the sense that dominates all of these lemmas' occurrences, if one does."""
    counted = _counted(wordnet, lemmas)
    if not counted:
        return None
    ((sense, count),) = counted.most_common(1)
    share = count / (counted.total() + _UNSEEN * len(counted))
    return sense if count >= _FEWEST_COUNTED and share >= _DOMINANT_SHARE else None


def _counted(wordnet: WordNet, lemmas: Iterable[Lemma]) -> Counter[Sense]:
    """Return how often each sense of these lemmas was counted."""
    counted: Counter[Sense] = Counter()
    for word, part in lemmas:
        for number, synset in enumerate(wordnet.senses.get((word, part), ()), start=1):
            counted[part, synset] += wordnet.counted.get((word, part, number), 0)
    return counted


def _is_of_part(wordnet: WordNet, lemmas: Iterable[Lemma], part: str) -> bool:
    """Return whether these lemmas are nearly always of this part of speech."""
    counted = _counted(wordnet, lemmas)
    same = sum(count for (other, _), count in counted.items() if other == part)
    return same >= _DOMINANT_PART_SHARE * counted.total()


def _same_countability(morphology: Morphology, word: str, substitute: str) -> bool:
    """Return whether both nouns have a distinct plural or neither, and both look singular or neither."""
    plurals = [morphology.inflect(noun, "NNS") for noun in (word, substitute)]
    countable = [
        plural is not None and plural != noun for plural, noun in zip(plurals, (word, substitute), strict=True)
    ]
    return countable[0] == countable[1] and word.endswith("s") == substitute.endswith("s")


def _form_pairs(morphology: Morphology, word: str, substitute: str, part: str) -> list[tuple[str, str]]:
    """Return the inflected forms of both, less those where one form would need two substitutes."""
    pairs: dict[str, str] = {}
    unsure: set[str] = set()
    for tag in _TAGS[part]:
        form, new = (lemma if tag in _BASE_TAGS else morphology.inflect(lemma, tag) for lemma in (word, substitute))
        if form and new and pairs.setdefault(form, new) != new:
            unsure.add(form)
    return [(form, new) for form, new in pairs.items() if form not in unsure]


def main() -> None:
    """Parse the arguments and write `synonyms.txt` and `phrases.txt` beside `left_out.txt`."""
    parser = argparse.ArgumentParser(description="Derive the table of synonyms from WordNet 3.0.")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's database files")
    parser.add_argument("--output", type=Path, required=True, help="folder that holds left_out.txt")
    arguments = parser.parse_args()
    wordnet = read_wordnet(arguments.wordnet)
    left_out = read_left_out((arguments.output / "left_out.txt").read_text(encoding="utf-8"))
    lines = table_lines(wordnet, _lemminflect(wordnet), left_out)
    head = "# Derived from WordNet 3.0, Copyright 2006 by Princeton University; see LICENSE.txt.\n"
    _write(arguments.output / "synonyms.txt", head, lines)
    _write(arguments.output / "phrases.txt", head, _phrases(wordnet, {line.split("\t")[0] for line in lines}))


def _write(path: Path, head: str, lines: Iterable[str]) -> None:
    path.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def _phrases(wordnet: WordNet, forms: set[str]) -> list[str]:
    """Return WordNet's entries of several words that hold one of the forms."""
    entries = {word.lower().replace("_", " ") for word, _ in wordnet.senses if "_" in word}
    return sorted(entry for entry in entries if forms & set(entry.split()))


def _lemminflect(wordnet: WordNet) -> Morphology:
    from lemminflect import getAllLemmas, getInflection  # Needed to build the table, not to use it.

    parts = {"NOUN": "noun", "PROPN": "noun", "VERB": "verb", "AUX": "verb", "ADJ": "adj", "ADV": "adv"}

    def inflect(lemma: str, tag: str) -> str | None:
        forms = getInflection(lemma, tag, inflect_oov=False)
        return forms[0] if forms else None

    def lemmas(form: str) -> set[Lemma]:
        found = getAllLemmas(form).items()
        inflected = {(lemma, parts[tag]) for tag, names in found if tag in parts for lemma in names}
        return inflected | set(_entries(wordnet, form))

    return Morphology(inflect, lemmas)


if __name__ == "__main__":
    main()
