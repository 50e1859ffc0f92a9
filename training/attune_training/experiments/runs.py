"""Running one row of a table on one split, or reading back its finished runs."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attune_training.data.corpus import Corpus
from attune_training.data.splits import Split
from attune_training.evaluation.predictions import Predictions
from attune_training.evaluation.report import DimensionScore, score
from attune_training.experiments.plan import PlannedRun
from attune_training.fitting.folder import (
    RunIdentity,
    RunResult,
    check_folder,
    is_finished,
    read_predictions,
    read_result,
)
from attune_training.fitting.run import RunOptions, fit
from attune_training.models.building import build_model, full_checkpoint_bytes, total_parameters
from attune_training.models.checkpoints import read_config
from attune_training.providers import ProviderError
from attune_weights import WeightsError

__all__ = ["Cell", "Failed", "Measured", "Subject", "check_folders", "measure"]

_FAILURE = "failure.txt"


@dataclass(frozen=True, slots=True)
class Subject:
    """The corpus of an experiment: its name in the recipe, its path, and its content."""

    name: str
    path: Path
    corpus: Corpus


@dataclass(frozen=True, slots=True)
class Measured:
    """One row on one split.

    `dimensions` are of the test part; where several sessions are left out in turn, of all test parts together, each
    predicted by the model that was not trained on it, and `folds` are of each of them. Parameters and sizes are of the
    row's models together (one, or valence and arousal-dominance), the full ones with the frozen towers in float32;
    `seconds` are of all runs.
    """

    dimensions: dict[str, DimensionScore]
    folds: dict[str, dict[str, DimensionScore]]
    trained_parameters: int
    total_parameters: int
    checkpoint_bytes: int
    full_checkpoint_bytes: int
    seconds: float
    folders: tuple[Path, ...]

    @property
    def mean_loss(self) -> float:
        """The loss averaged over the dimensions."""
        return float(np.mean([item.loss for item in self.dimensions.values()]))


@dataclass(frozen=True, slots=True)
class Failed:
    """One row on one split that gave no result, and why."""

    reason: str


Cell = Measured | Failed


def check_folders(runs: Sequence[PlannedRun], subject: Subject) -> None:
    """Check that existing folders hold these runs, before any of them starts.

    Raises:
        RunError: one of them holds another run.
    """
    data = {subject.name: subject.corpus.digest}
    for run in runs:
        check_folder(run.folder, RunIdentity.of(run.target, run.recipe, data, None))


def measure(runs: Sequence[PlannedRun], subject: Subject, options: RunOptions, echo: Callable[[str], None]) -> Cell:
    """Finish the runs of one row on one split and summarise them; failures are returned, not raised.

    Raises:
        ProviderError: no segmenter is installed, which every row needs.
        WeightsError: the towers' weights, which every row needs, cannot be fetched.
    """
    results = []
    for run in runs:
        try:
            results.append(_finish(run, subject, options, echo))
        except (ProviderError, WeightsError):
            raise
        except Exception as error:  # of any kind: the other rows go on
            reason = _write_failure(run.folder, error)
        else:
            continue
        gc.collect()  # a failed trainer keeps its model in a reference cycle; the next row may need the memory
        echo(f"failed: {run.folder}: {reason}")
        return Failed(reason)
    return _summed(runs, results, subject)


def _finish(run: PlannedRun, subject: Subject, options: RunOptions, echo: Callable[[str], None]) -> RunResult:
    """Return the result of a run: read back if finished, otherwise trained or resumed."""
    if is_finished(run.folder):
        echo(f"finished before: {run.folder}")
        return read_result(run.folder)
    echo(f"run: {run.folder}")
    (run.folder / _FAILURE).unlink(missing_ok=True)
    return fit(run.recipe, run.target, {subject.name: subject.path}, run.folder, options=options, echo=echo)


def _write_failure(folder: Path, error: Exception) -> str:
    """Keep the traceback beside the run, and return the reason in one line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILURE).write_text(traceback.format_exc(), encoding="utf-8")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _summed(runs: Sequence[PlannedRun], results: Sequence[RunResult], subject: Subject) -> Measured:
    one_model_of_each = {run.target: result for run, result in zip(runs, results, strict=True)}.values()
    models = [_meta_model(result.folder) for result in one_model_of_each]
    folds = _folds(runs, results, subject.name)
    return Measured(
        dimensions=next(iter(folds.values())) if len(folds) == 1 else _pooled(runs, subject),
        folds=folds if len(folds) > 1 else {},
        trained_parameters=sum(result.trained_parameters for result in one_model_of_each),
        checkpoint_bytes=sum(result.checkpoint_bytes for result in one_model_of_each),
        total_parameters=sum(map(total_parameters, models)),
        full_checkpoint_bytes=sum(map(full_checkpoint_bytes, models)),
        seconds=sum(result.seconds for result in results),
        folders=tuple(run.folder for run in runs),
    )


def _folds(
    runs: Sequence[PlannedRun], results: Sequence[RunResult], corpus: str
) -> dict[str, dict[str, DimensionScore]]:
    """Return the scores by split policy and dimension."""
    folds: dict[str, dict[str, DimensionScore]] = {}
    for run, result in zip(runs, results, strict=True):
        folds.setdefault(str(run.policy), {}).update(result.scores[corpus].dimensions)
    return folds


def _pooled(runs: Sequence[PlannedRun], subject: Subject) -> dict[str, DimensionScore]:
    """Return the scores over all test parts together.

    Pooled, not averaged: every utterance counts once, and differences in level between the models count as error.
    """
    dimensions: dict[str, DimensionScore] = {}
    for target in dict.fromkeys(run.target for run in runs):
        parts = [_test_predictions(run, subject) for run in runs if run.target == target]
        pooled = Predictions(
            names=parts[0].names,
            utterances=tuple(item for part in parts for item in part.utterances),
            predicted=np.concatenate([part.predicted for part in parts]),
            target=np.concatenate([part.target for part in parts]),
        )
        dimensions |= score(pooled).dimensions
    return dimensions


def _test_predictions(run: PlannedRun, subject: Subject) -> Predictions:
    """Return the predictions of the run's model for its test part."""
    split: Split = run.policy.split(subject.corpus.utterances, run.target, run.recipe.seed)
    return read_predictions(run.folder, subject.name, split.test)


def _meta_model(folder: Path) -> nn.Module:
    """Return the run's model with its towers on the meta device, as shapes without weights."""
    with torch.device("meta"):
        return build_model(read_config(folder / "model"), None)
