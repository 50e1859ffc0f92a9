"""Crisis words: where a transcript speaks of suicide, self-harm or harm to others.

    find_crisis(["I am so tired.", "I don't want to live anymore."])
    (Flag(kind='suicide', words="don't want to live", segment=1, start=2, last_segment=1, end=20),)

The words looked for are in `words.yaml` beside this file; changing them needs no code. A flag says that such words were
spoken, so that a client can show where to find help and the music can be a gentle one. It says nothing of the person.

What it decides, where it could be decided otherwise:

- *Past* is flagged: an attempt, self-harm or violence years ago, and the time since the last one ("clean for a month").
  Who has been there may be near it again, and a notice too many does less harm than one too few.
- *Somebody near* is flagged: "my brother said he wants to die", a loss by suicide, a threat against the speaker.
  Whoever tells of it may need help for another, or for themselves. The kind says what the words are about, not whom.
- *Denied* is not flagged ("I would never hurt myself", "I'm not suicidal"), unless the denial is open or taken back
  ("I can't promise that I won't", "I don't want to hurt her, but I'm scared that I will").
- *Films, books, games, songs, news, and working with it* are not flagged, unless the speaker speaks of themselves.
- *Meant*: self-harm that is said to be on purpose is flagged, whoever and whatever stands beside it (a nurse, an oven).
- *Longing* to be with somebody, to join or follow them, is flagged where a death is told of, in any sentence.
- *Idioms, accidents, hyperbole with a trivial reason* are not flagged. Hyperbole without a reason ("I want to kill
  him") is, because the words cannot be told from earnest ones.

Limits. It is a list of patterns, not an understanding: it will miss what is said in other words, in hints, in
silence, in a voice, or in words that were heard wrongly; and it will flag some that mean nothing of the kind, irony
above all. It knows English alone, and no more than a sentence at a time, also one that goes on over pauses. So no
flag does not mean no danger, and a flag is never a diagnosis, a measure of risk, or a reason to alarm anybody else.
Of 120 plain sentences that it had not seen it found 98, of 210 that tell it as people do, much of it indirect, 74. Most
figures in tests/unit/test_crisis.py are of sentences that it was mended by, and flatter it; tests/data/crisis/README.md
tells them apart.

Nothing is stored, logged or sent here: a flag goes to whoever asked, and holds no more than the words that they gave.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from attune_client.protocol.models import CRISIS_KIND, CRISIS_PLACE
from attune_client.protocol.tensors import Tensors, bytes_tensor
from attune_ensemble.speech.crisis.alphabet import Tokens
from attune_ensemble.speech.crisis.places import Places
from attune_ensemble.speech.crisis.vocabulary import (
    KINDS,
    WORDS_FILE,
    Patterns,
    TokenPattern,
    Vocabulary,
    VocabularyError,
    load_vocabulary,
)

__all__ = ["KINDS", "WORDS_FILE", "Flag", "VocabularyError", "crisis_tensors", "find_crisis", "warm_up"]

_STOP = re.compile(r"[.!?;]")
_HESITATION = re.compile(r"\.{2,}")
_ENDING = re.compile(r"[\s.,!?;…—–-]+$")
_SEARCHED_BEFORE = 80  # tokens, gaps among them: more than a denial and what it reaches over ever take
# Written otherwise, as long as before, so that places stay what they are.
_SAME_LENGTH = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "\u00a0": " "})


@dataclass(frozen=True, slots=True)
class Flag:
    """Words that speak of suicide, self-harm or harm to others.

    `kind` is one of `KINDS`; `words` are as they stand in the transcript. They begin at character `start` of segment
    `segment` and end before character `end` of segment `last_segment`, another one where a segment was cut in between.
    Segments and characters count from 0; for a text, both segments are 0.
    """

    kind: str
    words: str
    segment: int
    start: int
    last_segment: int
    end: int


def find_crisis(transcript: str | Sequence[str], words: Path = WORDS_FILE) -> tuple[Flag, ...]:
    """The flags of a text, or of the transcripts of a narration's segments, in the order of their places.

    The narration is taken as a whole: a sentence that no full stop ends goes on in the next segment.

    `words` is a file in the format of the shipped one. Flags of one kind do not overlap. Takes time in proportion to
    the length of the text, some tens of milliseconds of a CPU core for 9,000 characters. The first call reads the
    patterns, a quarter of a second (`warm_up` does it beforehand); a pattern is compiled, some milliseconds, when a
    text first has it.
    Raises `VocabularyError` when `words` cannot be used.
    """
    vocabulary = load_vocabulary(words)
    segments = [transcript] if isinstance(transcript, str) else list(transcript)
    found = list(_find_in_whole(segments, vocabulary))
    across = [flag for left in range(len(segments) - 1) for flag in _find_across(segments, left, vocabulary)]
    found += [flag for flag in across if not any(_meet(flag, other) for other in found)]
    return tuple(sorted(found, key=lambda f: (f.segment, f.start, KINDS.index(f.kind))))


def warm_up() -> None:
    """Reads the shipped patterns, and compiles what every find is asked for, so that the first text need not wait.

    Takes a third of a second of a CPU core.
    """
    find_crisis("I want to die.")


def crisis_tensors(transcripts: Sequence[str]) -> Tensors:
    """The flags of the transcripts as `crisis_kind` [F] and `crisis_place` [F, 4] of the protocol."""
    flags = find_crisis(transcripts)
    places = [(flag.segment, flag.start, flag.last_segment, flag.end) for flag in flags]
    return {
        CRISIS_KIND.name: bytes_tensor(*(flag.kind for flag in flags)),
        CRISIS_PLACE.name: np.array(places, np.int32).reshape(-1, 4),
    }


def _meet(flag: Flag, other: Flag) -> bool:
    """Whether two flags of one kind touch."""
    before = (other.last_segment, other.end) <= (flag.segment, flag.start)
    after = (other.segment, other.start) >= (flag.last_segment, flag.end)
    return flag.kind == other.kind and not before and not after


def _find_in_whole(segments: Sequence[str], vocabulary: Vocabulary) -> Iterator[Flag]:
    """Flags of the whole narration, in which a sentence may go on over any number of segments."""
    starts = [0, *accumulate(len(text) + 1 for text in segments)]
    for flag in _find(" ".join(segments), vocabulary):
        first, last = (bisect_right(starts, place) - 1 for place in (flag.start, flag.end - 1))
        yield Flag(flag.kind, flag.words, first, flag.start - starts[first], last, flag.end - starts[last])


def _find_across(segments: Sequence[str], left: int, vocabulary: Vocabulary) -> Iterator[Flag]:
    """Flags that begin in one segment and end in the next, if a full stop at the cut is taken for a pause."""
    first, second = segments[left], segments[left + 1]
    ending = _ENDING.search(first)
    if not ending or not _STOP.search(ending[0]):
        return
    kept = first[: ending.start()]
    joined = kept.ljust(len(first)) + " " + second
    offset = len(first) + 1
    for flag in _find(joined, vocabulary):
        if flag.start < len(kept) and flag.end > offset:
            words = f"{first[flag.start :].strip()} {second[: flag.end - offset]}"
            yield replace(flag, words=words, segment=left, last_segment=left + 1, end=flag.end - offset)


def _find(text: str, vocabulary: Vocabulary) -> Iterator[Flag]:
    """Flags of one text, all in segment 0."""
    plain = _HESITATION.sub(lambda dots: " " * len(dots[0]), text.translate(_SAME_LENGTH))
    narration = _Narration(vocabulary.alphabet.encode(plain), vocabulary)
    for kind in KINDS:
        for first, end in _merge(_spans(narration, kind)):
            start, stop = narration.tokens.starts[first], narration.tokens.ends[end - 1]
            yield Flag(kind, text[start:stop], 0, start, 0, stop)


def _spans(narration: _Narration, kind: str) -> Iterator[tuple[int, int]]:
    """First token and the one after the last, of all that is found of a kind and not explained away."""
    finds = dict.fromkeys(narration.finds(kind))
    if finds:
        alike = _Cover(_merge(narration.all_of(narration.vocabulary.kinds[kind].only_sounds_like)))
        for span in finds:
            innocent = alike.overlaps(span) and not (kind == "self_harm" and narration.on_purpose.overlaps(span))
            if not innocent and not narration.explains(span, kind):
                yield span


class _Narration:
    """The tokens of a narration, and what its sentences say that takes away what was found in them."""

    def __init__(self, tokens: Tokens, vocabulary: Vocabulary) -> None:
        self.tokens = tokens
        self.vocabulary = vocabulary
        self._places = Places(tokens.chars, vocabulary.alphabet)
        self._said_at: dict[str, list[int]] = {}

    def all_of(self, patterns: Patterns) -> Iterator[tuple[int, int]]:
        """Where any of the patterns stands, pattern by pattern."""
        for pattern in self._likely(patterns):
            yield from self._found([pattern])

    def first_of(self, patterns: Patterns) -> Iterator[tuple[int, int]]:
        """Where the patterns stand as alternatives: from left to right, and of those at one place the first."""
        return self._found(self._likely(patterns))

    def _likely(self, patterns: Patterns) -> list[TokenPattern]:
        return patterns.that_may_be_in(self._places.present)

    def _found(self, patterns: Iterable[TokenPattern]) -> Iterator[tuple[int, int]]:
        standing: dict[int, list[TokenPattern]] = defaultdict(list)
        for pattern in patterns:
            for place in self._places.of(pattern.tree):
                standing[place].append(pattern)
        end = 0
        for place, here in sorted(standing.items()):
            tried = (pattern.compiled.match(self.tokens.chars, place) for pattern in here if place >= end)
            if found := next(filter(None, tried), None):
                yield found.span()
                end = found.end()

    def _said(self, field: str, sentence: tuple[int, int]) -> bool:
        """Whether one of a list of patterns stands in a sentence."""
        places = self.saying(field)
        first = bisect_left(places, sentence[0])
        return first < len(places) and places[first] < sentence[1]

    def finds(self, kind: str) -> Iterator[tuple[int, int]]:
        """Where words of a kind stand."""
        yield from self.all_of(self.vocabulary.kinds[kind].patterns)
        if kind == "suicide" and self.saying("losses"):
            yield from self.first_of(self.vocabulary.after_a_loss)

    @cached_property
    def on_purpose(self) -> _Cover:
        """Self-harm that is said to be meant, and not denied."""
        meant = self.first_of(self.vocabulary.on_purpose)
        return _Cover(_merge(span for span in meant if not self._denied(span, self.tokens.sentence(span[0]))))

    def explains(self, span: tuple[int, int], kind: str) -> bool:
        """Whether the rest of the sentence takes away what was found: a denial, a film, a trivial reason."""
        vocabulary, chars = self.vocabulary, self.tokens.chars
        start, end = span
        sentence = self.tokens.sentence(start)
        if self._denied(span, sentence):
            return True
        if self._said("earnest", sentence):
            return False
        if kind == "harm_to_others" and self._said("trivial", sentence):
            return True
        if vocabulary.speaker.compiled.search(chars, max(sentence[0], start - _SEARCHED_BEFORE), start):
            return False
        own = kind != "harm_to_others" and vocabulary.own_words.compiled.search(chars, start, end)
        return self._said("settings", sentence) and not own

    def saying(self, field: str) -> list[int]:
        """Where patterns of a list begin."""
        if field not in self._said_at:
            likely = self._likely(getattr(self.vocabulary, field))
            self._said_at[field] = sorted(place for pattern in likely for place in self._places.of(pattern.tree))
        return self._said_at[field]

    @cached_property
    def _open(self) -> str:
        """The tokens, in which what only looks like a denial is commas."""
        chars = list(self.tokens.chars)
        for start, end in self.first_of(self.vocabulary.not_denials):
            chars[start:end] = "," * (end - start)
        return "".join(chars)

    def _denied(self, span: tuple[int, int], sentence: tuple[int, int]) -> bool:
        """Whether what was found is denied, and not taken back by what comes after it."""
        before = self._open[max(sentence[0], span[0] - _SEARCHED_BEFORE) : span[0]]
        plain = self.vocabulary.fillers.compiled.sub(" ", before)
        if not self.vocabulary.denial.compiled.search(plain):
            return False
        return not self.vocabulary.taken_back.compiled.match(self.tokens.chars, span[1], sentence[1])


class _Cover:
    """Spans of one search, in order and apart from each other."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._spans = list(spans)
        self._ends = [end for _, end in self._spans]

    def overlaps(self, span: tuple[int, int]) -> bool:
        place = bisect_right(self._ends, span[0])
        return place < len(self._spans) and self._spans[place][0] < span[1]


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping spans as one each."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
