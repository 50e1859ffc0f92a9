"""The corpora of a run: opened, split, and read into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attune_training.config import TARGET_NAMES, Target
from attune_training.data.batches import read_examples
from attune_training.data.corpus import BadRows, Corpus, open_corpus
from attune_training.data.splits import Split, SplitError, check_test_kept, parse_split_policy
from attune_training.data.utterance import SPLIT_NAMES, Utterance
from attune_training.fitting.epochs import LoadedCorpus
from attune_training.fitting.folder import RunError
from attune_training.fitting.settings import Recipe

__all__ = ["Part", "categories", "open_parts", "read_parts"]

_MIN_LABELS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One corpus of a run and its split."""

    corpus: Corpus
    split: Split


def open_parts(recipe: Recipe, target: Target, paths: Mapping[str, Path], bad_rows: BadRows) -> dict[str, Part]:
    """Open and split every corpus of the recipe.

    Raises:
        RunError: a corpus of the recipe has no path, takes its words from one that is not there, or has no labels of
            the target.
        CorpusError: a corpus cannot be opened, or has bad rows that are refused.
        SplitError: a corpus cannot be split as the recipe wants, or what it keeps for the test would be trained on.
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
        _check(name, corpus, split, target)
        parts[name] = Part(corpus, split)
    return parts


def _check(name: str, corpus: Corpus, split: Split, target: Target) -> None:
    try:
        if corpus.keeps_test:
            check_test_kept(split)
    except SplitError as error:
        raise SplitError(f"{name}: {error}") from error
    for kind in SPLIT_NAMES:
        if len(_labelled(getattr(split, kind), target)) < _MIN_LABELS:
            wanted = " or ".join(TARGET_NAMES[target])
            raise RunError(f"{name}: its {kind} part has hardly a label of {wanted}: leave it out of this run")


def read_parts(recipe: Recipe, target: Target, parts: Mapping[str, Part]) -> dict[str, LoadedCorpus]:
    """Read what training and validation need into memory: utterances with a label of what is predicted."""
    names, loaded = categories(parts), {}
    for index, name in enumerate(recipe.corpora):
        part, settings = parts[name], recipe.corpora[name]
        train, validation = (_labelled(found, target) for found in (part.split.train, part.split.validation))
        loaded[name] = LoadedCorpus(
            settings=settings,
            train=read_examples(train, weight=settings.weight, categories=names, corpus=index),
            validation=read_examples(_drawn(validation, settings.validated, recipe.seed)),
        )
    return loaded


def _labelled(utterances: Sequence[Utterance], target: Target) -> list[Utterance]:
    return [utterance for utterance in utterances if utterance.is_labelled(TARGET_NAMES[target])]


def categories(parts: Mapping[str, Part]) -> list[str]:
    """Return the categories that the voices of the training parts know, sorted."""
    return sorted(
        {item.category for part in parts.values() for item in part.split.train if item.category and item.audio}
    )


def _drawn(utterances: Sequence[Utterance], count: int | None, seed: int) -> Sequence[Utterance]:
    """Return `count` of the utterances, drawn by seed; all where it is None."""
    if count is None or count >= len(utterances):
        return utterances
    chosen = np.random.default_rng(seed).choice(len(utterances), count, replace=False)
    return [utterances[index] for index in sorted(chosen)]
