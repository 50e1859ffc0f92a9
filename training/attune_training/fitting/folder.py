"""The run folder: the identity of a run, and its results.

It holds `recipe.yaml`, `run.json` (identity, git revision, command, versions, machine), `checkpoints/` (the last
epoch, to go on from), `logs/` (CSV), `model/` (the best epoch, ready to serve), pictures, the test part's
predictions (`predicted_<corpus>.csv`), and at the end `metrics.json`, which marks the run as finished.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from attune_training.config import Target
from attune_training.data.utterance import Utterance
from attune_training.evaluation.predictions import Predictions
from attune_training.evaluation.report import Scores
from attune_training.fitting.settings import Recipe
from attune_training.machine import git_revision, hardware_line
from attune_weights.files import write_json

__all__ = [
    "RunError",
    "RunIdentity",
    "RunResult",
    "check_folder",
    "claim_folder",
    "is_finished",
    "read_predictions",
    "read_result",
    "write_predictions",
    "write_result",
]

_RUN, _METRICS = "run.json", "metrics.json"


class RunError(ValueError):
    """A run cannot start: its folder belongs to another run, or the recipe and the data do not fit."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Identity of a run across starts: digests of each corpus, of the initial weights and of the text stream's."""

    target: Target
    recipe: str
    data: dict[str, str]
    start_from: str
    words_from: str

    @classmethod
    def of(
        cls,
        target: Target,
        recipe: Recipe,
        data: dict[str, str],
        start_from: Path | None = None,
        words_from: Path | None = None,
    ) -> RunIdentity:
        """Return the identity of a run; `start_from` and `words_from` are folders of saved models."""
        start, words = (_digest(folder) if folder else "" for folder in (start_from, words_from))
        return cls(target, recipe.to_yaml(), data, start, words)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a finished run: scores by corpus, the size of the trained parameters, and the time.

    `part` is the part of the corpora that the scores are of: the test part, unless it was left unread. `seconds` are
    those of training and validation, over all starts.
    """

    folder: Path
    scores: dict[str, Scores]
    trained_parameters: int
    checkpoint_bytes: int
    seconds: float
    part: str = "test"


def check_folder(folder: Path, identity: RunIdentity) -> bool:
    """Return whether the folder holds this run; False where it holds none.

    Raises:
        RunError: it holds another run.
    """
    path = folder / _RUN
    if not path.is_file():
        return False
    before, wanted = json.loads(path.read_text(encoding="utf-8"))["identity"], asdict(identity)
    changed = [name for name in wanted if before.get(name) != wanted[name]]
    if changed:
        raise RunError(f"{folder} holds a run with other {', '.join(changed)}: choose another --output, or remove it")
    return True


def claim_folder(folder: Path, identity: RunIdentity, accelerator: str, facts: Mapping[str, Any]) -> None:
    """Record the identity of the run, unless an earlier start did; `facts` are added to `run.json`.

    Raises:
        RunError: the folder holds another run.
    """
    if check_folder(folder, identity):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(identity.recipe, encoding="utf-8")
    record = {
        "identity": asdict(identity),
        **facts,
        "git": git_revision(),
        "command": shlex.join(["attune", *sys.argv[1:]]),
        "hardware": hardware_line(accelerator),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
    }
    write_json(folder / _RUN, record)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def is_finished(folder: Path) -> bool:
    """Return whether the folder's run is finished."""
    return (folder / _METRICS).is_file()


def write_result(result: RunResult, scores: Mapping[str, Mapping[str, Scores]]) -> None:
    """Write the result; `scores` are by corpus and part, the validation part's beside those of the test part."""
    record = {
        "scores": {name: {part: asdict(value) for part, value in found.items()} for name, found in scores.items()},
        "trained_parameters": result.trained_parameters,
        "checkpoint_bytes": result.checkpoint_bytes,
        "seconds": round(result.seconds, 1),
    }
    write_json(result.folder / _METRICS, record)


def read_result(folder: Path) -> RunResult:
    """Return the result of a finished run."""
    metrics = json.loads((folder / _METRICS).read_text(encoding="utf-8"))
    scores = TypeAdapter(dict[str, dict[str, Scores]]).validate_python(metrics["scores"])
    part = "test" if all("test" in parts for parts in scores.values()) else "validation"
    return RunResult(
        folder=folder,
        scores={name: parts[part] for name, parts in scores.items()},
        trained_parameters=metrics["trained_parameters"],
        checkpoint_bytes=metrics["checkpoint_bytes"],
        seconds=metrics["seconds"],
        part=part,
    )


def write_predictions(predictions: Predictions, folder: Path, corpus: str) -> None:
    """Write the measured part's predictions and labels, in the order of the split."""
    header = ",".join([*predictions.names, *(f"{name}_true" for name in predictions.names)])
    columns: Any = np.concatenate([predictions.predicted, predictions.target], axis=1)
    np.savetxt(_predictions_file(folder, corpus), columns, fmt="%.9g", delimiter=",", header=header, comments="")


def read_predictions(folder: Path, corpus: str, utterances: Sequence[Utterance]) -> Predictions:
    """Return the predictions for `utterances` that `write_predictions` wrote."""
    path = _predictions_file(folder, corpus)
    columns = np.loadtxt(path, np.float32, delimiter=",", skiprows=1, ndmin=2)  # [n, 2 N]
    names = tuple(path.read_text(encoding="utf-8").partition("\n")[0].split(","))[: columns.shape[1] // 2]
    predicted, target = np.split(columns, 2, axis=1)
    return Predictions(names, tuple(utterances), predicted, target)


def _predictions_file(folder: Path, corpus: str) -> Path:
    return folder / f"predicted_{corpus}.csv"
