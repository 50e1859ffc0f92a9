"""The corpora of a run: opened, split, and read into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attune_training.config import Target
from attune_training.data.batches import read_examples
from attune_training.data.corpus import BadRows, Corpus, open_corpus
from attune_training.data.splits import Split, parse_split_policy
from attune_training.data.utterance import Utterance
from attune_training.fitting.epochs import LoadedCorpus
from attune_training.fitting.folder import RunError
from attune_training.fitting.settings import Recipe

__all__ = ["Part", "categories", "open_parts", "read_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """One corpus of a run and its split."""

    corpus: Corpus
    split: Split


def open_parts(recipe: Recipe, target: Target, paths: Mapping[str, Path], bad_rows: BadRows) -> dict[str, Part]:
    """Open and split every corpus of the recipe.

    Raises:
        RunError: a corpus of the recipe has no path, or takes its words from one that is missing.
        CorpusError: a corpus cannot be opened, or has bad rows that are refused.
        SplitError: a corpus cannot be split as the recipe requires.
    """
    if set(paths) != set(recipe.corpora) or not paths:
        raise RunError(
            f"the recipe has the corpora {sorted(recipe.corpora)}, and paths were given for {sorted(paths)}: "
            "give --data NAME=PATH for each"
        )
    for name, settings in recipe.corpora.items():
        if settings.foreign_words and settings.words_from not in recipe.corpora:
            raise RunError(
                f"{name} takes words from {settings.words_from!r}: give --data {settings.words_from}=PATH too"
            )
    parts = {}
    for name, settings in recipe.corpora.items():
        corpus = open_corpus(settings.kind, paths[name], bad_rows)
        split = parse_split_policy(settings.split).split(corpus.utterances, target, recipe.seed)
        parts[name] = Part(corpus, split)
    return parts


def read_parts(recipe: Recipe, parts: Mapping[str, Part]) -> dict[str, LoadedCorpus]:
    """Read the training and validation parts into memory."""
    names = categories(parts)
    return {
        name: LoadedCorpus(
            settings=recipe.corpora[name],
            train=read_examples(part.split.train, weight=recipe.corpora[name].weight, categories=names),
            validation=read_examples(_drawn(part.split.validation, recipe.corpora[name].validated, recipe.seed)),
        )
        for name, part in parts.items()
    }


def categories(parts: Mapping[str, Part]) -> list[str]:
    """Return the categories of the training parts, sorted."""
    return sorted({item.category for part in parts.values() for item in part.split.train if item.category})


def _drawn(utterances: Sequence[Utterance], count: int | None, seed: int) -> Sequence[Utterance]:
    """Return `count` of the utterances, drawn by seed; all where it is None."""
    if count is None or count >= len(utterances):
        return utterances
    chosen = np.random.default_rng(seed).choice(len(utterances), count, replace=False)
    return [utterances[index] for index in sorted(chosen)]
