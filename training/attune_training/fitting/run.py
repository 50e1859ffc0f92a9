"""One training run, from recipe to run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from attune_training.config import Target
from attune_training.data.corpus import BadRows
from attune_training.evaluation.predictions import predict
from attune_training.evaluation.report import Scores, score
from attune_training.fitting.callbacks import EpochClock, KeepBest
from attune_training.fitting.corpora import Part, categories, open_parts, read_parts
from attune_training.fitting.epochs import EpochData
from attune_training.fitting.folder import (
    RunIdentity,
    RunResult,
    claim_folder,
    is_finished,
    read_result,
    write_predictions,
    write_result,
)
from attune_training.fitting.module import SCORE, RegressionModule
from attune_training.fitting.plots import draw_curves, draw_predictions
from attune_training.fitting.settings import Optimisation, Recipe
from attune_training.machine import is_first_process
from attune_training.models.building import trainable_parameters
from attune_training.models.checkpoints import checkpoint_bytes, warm_start
from attune_training.models.regressor import TEXT_STREAM
from attune_training.pretrained import ReadyModel, build, load
from attune_training.providers import segmenter

__all__ = ["RunOptions", "fit"]

Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options that may change between two starts of one run: they affect the machine, not the model.

    `skip_test`: the test part is left unread, for a run that is only a step towards a model.
    """

    accelerator: str = "auto"
    devices: int = 1
    workers: int = 0
    bad_rows: BadRows = "refuse"
    progress_bar: bool = True
    skip_test: bool = False


def fit(
    recipe: Recipe,
    target: Target,
    paths: Mapping[str, Path],
    folder: Path,
    *,
    start_from: Path | None = None,
    words_from: Path | None = None,
    options: RunOptions = RunOptions(),
    echo: Echo = lambda line: None,
) -> RunResult:
    """Train `target` by `recipe` on the corpora at `paths`, or resume the same run in `folder`.

    `start_from` is the folder of a saved model whose weights are taken where they fit; `words_from` that of one
    whose text stream replaces its own. The best epoch by the validation score is kept, and measured on the test part
    once, at the end. The result of a finished run is read back.

    Raises:
        RunError: the folder holds another run, or a corpus has no path.
        CorpusError: a corpus has bad rows and `options` refuse them, or it cannot be opened.
        SplitError: a corpus cannot be split as the recipe requires.
        ProviderError: no segmenter is installed, which the evaluation needs.
        WeightsError: weights cannot be fetched.
    """
    parts = open_parts(recipe, target, paths, options.bad_rows)
    _require_segmenter(parts)
    digests = {name: part.corpus.digest for name, part in parts.items()}
    identity = RunIdentity.of(target, recipe, digests, start_from, words_from)
    if is_first_process():
        claim_folder(folder, identity, options.accelerator, _facts(parts))
    if is_finished(folder):
        echo(f"{folder} holds this run, finished")
        return read_result(folder)
    ready = _fresh_model(recipe, target, ((start_from, ()), (words_from, TEXT_STREAM)), echo)
    echo(f"reading {sum(len(part.corpus.utterances) for part in parts.values())} utterances")
    trainer, seconds = _train(ready, recipe, parts, folder, options, echo)
    try:
        if is_first_process():
            _measure(folder, parts, seconds, options.skip_test)
    finally:
        trainer.strategy.barrier()  # where several processes train together, the others wait for its result
    return read_result(folder)


def _require_segmenter(parts: Mapping[str, Part]) -> None:
    """Check before training that its result can be measured as it will be served."""
    if any(utterance.audio for part in parts.values() for utterance in part.corpus.utterances):
        segmenter()


def _facts(parts: Mapping[str, Part]) -> dict[str, dict[str, object]]:
    """Return the entries of `run.json` about the data."""
    return {
        "notes": {name: part.corpus.note for name, part in parts.items() if part.corpus.note},
        "left_out": {name: len(part.corpus.problems) for name, part in parts.items()},
        "sizes": {
            name: {kind: len(getattr(part.split, kind)) for kind in ("train", "validation", "test")}
            for name, part in parts.items()
        },
    }


def _fresh_model(
    recipe: Recipe, target: Target, starts: Iterable[tuple[Path | None, Sequence[str]]], echo: Echo
) -> ReadyModel:
    """Return a new model, warm-started from the named parts of each saved model (all if none are named)."""
    torch.manual_seed(recipe.seed)
    settings = recipe.model
    lora = settings.lora.settings() if settings.lora else None
    ready = build(settings.towers, settings.architecture, target, lora)
    for folder, parts in starts:
        if folder is not None:
            start = warm_start(ready.model, folder, parts)
            echo(f"started from {folder}: {len(start.copied)} tensors taken, {len(start.fresh)} fresh")
    return ready


def _train(
    ready: ReadyModel, recipe: Recipe, parts: Mapping[str, Part], folder: Path, options: RunOptions, echo: Echo
) -> tuple[pl.Trainer, float]:
    """Train to the end; return the trainer, and the seconds that all starts took."""
    data = EpochData(read_parts(recipe, ready.model.config.target, parts), recipe, ready.collator(), options.workers)
    module = RegressionModule(ready.model, recipe, list(parts), len(categories(parts)), data.batches_per_epoch)
    clock = EpochClock(echo)
    with _quiet_lightning():
        trainer = _trainer(recipe.optimisation, folder, options, clock)
        last = folder / "checkpoints" / "last.ckpt"
        trainer.fit(module, data, ckpt_path=last if last.is_file() else None)
    return trainer, clock.seconds


def _trainer(settings: Optimisation, folder: Path, options: RunOptions, clock: EpochClock) -> pl.Trainer:
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        precision=settings.precision,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip_norm,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="logs"),
        log_every_n_steps=10,
        enable_progress_bar=options.progress_bar,
        enable_model_summary=False,
        callbacks=[
            KeepBest(folder / "model"),
            clock,
            EarlyStopping(SCORE, mode="max", patience=settings.patience, min_delta=0.0),
            ModelCheckpoint(folder / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's tips, and warnings about intended settings.

    A batch is one item here, made on demand; and the folder of a resumed run is not empty.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    expected = ("does not have many workers", "number of training batches", "LeafSpec", "exists and is not empty")
    with warnings.catch_warnings():
        for message in expected:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _measure(folder: Path, parts: Mapping[str, Part], seconds: float, skip_test: bool) -> None:
    """Measure the best epoch on validation and test, draw the plots, and write the result."""
    ready = load(folder / "model")
    measured = ("validation",) if skip_test else ("validation", "test")
    scores: dict[str, dict[str, Scores]] = {}
    for name, part in parts.items():
        found = {kind: predict(ready.model, getattr(part.split, kind), ready.collator()) for kind in measured}
        scores[name] = {kind: score(predictions) for kind, predictions in found.items()}
        last = found[measured[-1]]
        write_predictions(last, folder, name)
        draw_predictions(last, folder / f"predicted_{name}.png", f"{name}, {measured[-1]} part")
    draw_curves(folder / "logs", folder / "curves.png")
    result = RunResult(
        folder=folder,
        scores={name: found[measured[-1]] for name, found in scores.items()},
        trained_parameters=trainable_parameters(ready.model),
        checkpoint_bytes=checkpoint_bytes(folder / "model"),
        seconds=seconds,
        part=measured[-1],
    )
    write_result(result, scores)
