"""How many words of a text are recognised wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

__all__ = ["WordErrors", "plain_words", "word_errors"]


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Words replaced, left out and put in, of `count` words that were said."""

    substitutions: int
    deletions: int
    insertions: int
    count: int

    @property
    def rate(self) -> float:
        """The word error rate; above 1 where more words are put in than were said."""
        return (self.substitutions + self.deletions + self.insertions) / self.count


def plain_words(text: str) -> str:
    """Return the words as they are compared: Whisper's own rules for English (numbers, contractions, no punctuation).

    Spellings of one word in different countries stay different words.
    """
    # The rules would read the o of o'clock as the digit 0, and leave a dot of three.
    words = str(_normaliser()(text.lower().replace("’", "'").replace("o'clock", "oclock"))).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def word_errors(said: Sequence[str], recognised: Sequence[str]) -> WordErrors:
    """Compare texts [n] with what was recognised of each.

    Raises:
        ValueError: the lengths differ, or a text that was said has no words.
    """
    import jiwer  # here, for few commands need it

    references, hypotheses = [plain_words(text) for text in said], [plain_words(text) for text in recognised]
    if len(references) != len(hypotheses) or not all(references):
        raise ValueError("expected texts that have words, and as many that were recognised")
    found = jiwer.process_words(references, hypotheses)
    return WordErrors(
        found.substitutions,
        found.deletions,
        found.insertions,
        count=found.hits + found.substitutions + found.deletions,
    )


@cache
def _normaliser() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})
