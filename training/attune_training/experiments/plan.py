"""Plan of an experiment: the rows of a table, and the splits of its corpus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from attune_training.config import TABLE_2_LORA, ArchitectureName, Target
from attune_training.data.splits import (
    HeldOutSpeakers,
    LeaveOneSessionOut,
    SplitError,
    SplitPolicy,
    Stratified,
    parse_split_policy,
)
from attune_training.data.utterance import Utterance
from attune_training.experiments.paper import TableName
from attune_training.fitting.settings import Lora, Recipe

__all__ = ["EVERY_SESSION", "PlannedRun", "Row", "SplitChoice", "choose_splits", "plan_runs", "table_rows"]

EVERY_SESSION = "leave-one-session-out"
"""Split policy without a session: each session is left out in turn."""

_SEPARATE: tuple[Target, ...] = ("valence", "arousal_dominance")
_JOINT: tuple[Target, ...] = ("valence_arousal_dominance",)
_ANY_TARGET: Target = "valence_arousal_dominance"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: what is trained, and as how many models."""

    name: str
    architecture: ArchitectureName
    lora: Lora | None
    targets: tuple[Target, ...]


def table_rows(table: TableName, recipe: Recipe) -> tuple[Row, ...]:
    """Return the rows of a table; the adapters' dropout is the recipe's."""
    if table == "table1":
        return tuple(
            Row(name, name, None, _SEPARATE if name == "cross-modal-separate" else _JOINT)
            for name in get_args(ArchitectureName)
        )
    base = recipe.model.lora or Lora()
    return tuple(
        Row(
            f"lora-{lora.rank}-{lora.alpha}",
            "cross-modal-separate",
            replace(base, rank=lora.rank, alpha=lora.alpha),
            _SEPARATE,
        )
        for lora in TABLE_2_LORA
    )


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """One way to evaluate: a policy, or several whose test parts are pooled. `text` is the user's notation."""

    text: str
    label: str
    policies: tuple[SplitPolicy, ...]

    @property
    def is_speaker_independent(self) -> bool:
        """Whether no speaker of a test part occurs in training."""
        return all(policy.is_speaker_independent for policy in self.policies)


def choose_splits(asked: Sequence[str], utterances: Sequence[Utterance]) -> tuple[SplitChoice, ...]:
    """Return the splits that were asked for, or the paper's random one and a speaker-independent one.

    Raises:
        SplitError: one of them does not fit the corpus, or none was asked for and no speaker-independent one fits.
    """
    if not asked:
        return _single(Stratified()), _speaker_independent(utterances)
    choices = tuple(_parse(text, utterances) for text in dict.fromkeys(asked))
    for choice in choices:
        for policy in choice.policies:
            policy.split(utterances, _ANY_TARGET, seed=0)
    return choices


def _parse(text: str, utterances: Sequence[Utterance]) -> SplitChoice:
    if text != EVERY_SESSION:
        return _single(parse_split_policy(text))
    sessions = _sessions(utterances)
    if not sessions:
        raise SplitError(f"{text}: no utterance of this corpus has a session")
    return SplitChoice(text, "each session left out in turn", tuple(map(LeaveOneSessionOut, sessions)))


def _single(policy: SplitPolicy) -> SplitChoice:
    return SplitChoice(str(policy), policy.label, (policy,))


def _speaker_independent(utterances: Sequence[Utterance]) -> SplitChoice:
    """Return the last session left out, or held-out speakers where the corpus has no such sessions."""
    for policy in (*map(LeaveOneSessionOut, _sessions(utterances)[-1:]), HeldOutSpeakers()):
        try:
            policy.split(utterances, _ANY_TARGET, seed=0)
        except SplitError as error:
            reason = error
        else:
            return _single(policy)
    raise SplitError(
        f"no speaker-independent split fits this corpus ({reason}): "
        "give --split stratified for the random split alone, or --split given"
    )


def _sessions(utterances: Sequence[Utterance]) -> list[str]:
    """Return the sessions in order; `10` comes after `9`."""
    return sorted({item.session for item in utterances} - {""}, key=lambda name: (len(name), name))


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One training run: one model of one row, on one split."""

    recipe: Recipe
    target: Target
    policy: SplitPolicy
    folder: Path


def plan_runs(row: Row, choice: SplitChoice, recipe: Recipe, corpus: str, output: Path) -> list[PlannedRun]:
    """Return the runs of one row on one split; `corpus` is its name in the recipe."""
    model = replace(recipe.model, architecture=row.architecture, lora=row.lora)
    runs = []
    for policy in choice.policies:
        settings = replace(recipe.corpora[corpus], split=str(policy))
        run_recipe = replace(recipe, model=model, corpora={corpus: settings})
        place = output / "runs" / row.name / re.sub(r"[^\w.-]+", "-", str(policy))
        runs += [PlannedRun(run_recipe, target, policy, place / target) for target in row.targets]
    return runs
