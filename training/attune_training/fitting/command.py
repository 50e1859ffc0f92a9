"""`attune train valence|arousal-dominance|joint`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from attune_training.config import Target
from attune_training.data.corpus import CORPUS_KINDS, BadRows, default_split
from attune_training.edge import bad_rows_option, data_option, echo, named_paths, plain_errors
from attune_training.evaluation.report import markdown, to_json
from attune_training.fitting.folder import RunResult
from attune_training.fitting.run import RunOptions, fit
from attune_training.fitting.settings import CorpusSettings, Recipe, load_recipe, recipe_names
from attune_training.machine import is_first_process

__all__ = ["RUN_OPTIONS", "arousal_dominance", "command_with", "joint", "valence", "with_corpora", "with_overrides"]

Options = tuple[Callable[[Any], Any], ...]

_MODEL = click.Path(exists=True, file_okay=False, path_type=Path)

RUN_OPTIONS: Options = (
    click.option("--recipe", default="paper", show_default=True, help=f"{', '.join(recipe_names())}, or a YAML file."),
    click.option("--epochs", type=click.IntRange(min=1), help="In place of the recipe's."),
    click.option("--seed", type=int, help="In place of the recipe's."),
    bad_rows_option,
    click.option("--accelerator", default="auto", show_default=True, help="cpu, gpu, or another of Lightning's."),
    click.option("--devices", default=1, show_default=True, help="How many of them."),
    click.option("--workers", default=0, show_default=True, help="Processes that prepare batches."),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]"),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)
"""Options of every command that trains by a recipe."""

_OPTIONS: Options = (
    data_option("a corpus of the recipe by its name, or any corpus by its kind"),
    click.option(
        "--split",
        help="How to split corpora that are not in the recipe.  [default: the corpus's own way, or stratified]",
    ),
    click.option("--output", type=click.Path(path_type=Path), required=True, help="Run folder; the same one resumes."),
    click.option("--start-from", type=_MODEL, help="A saved model."),
    click.option("--words-from", type=_MODEL, help="Another one, whose stream of words is taken."),
    click.option("--skip-test", is_flag=True, help="Leave the test part unread: a step on the way to a model."),
    *RUN_OPTIONS,
)


def _command(name: str, target: Target, help_text: str) -> click.Command:
    def run(**arguments: Any) -> None:
        _run(target, **arguments)

    return command_with(_OPTIONS, name, help_text, run)


def command_with(options: Options, name: str, help_text: str, run: Callable[..., None]) -> click.Command:
    """Return the command `name` that calls `run` with the values of its options."""
    for option in reversed(options):
        run = option(run)
    return click.command(name, help=help_text)(run)


valence = _command("valence", "valence", "Train the valence model.")
arousal_dominance = _command("arousal-dominance", "arousal_dominance", "Train the arousal-dominance model.")
joint = _command(
    "joint", "valence_arousal_dominance", "Train one model of all three dimensions (Table I), or a start for both."
)


def _run(
    target: Target,
    data: tuple[str, ...],
    recipe: str,
    split: str | None,
    output: Path,
    start_from: Path | None,
    words_from: Path | None,
    epochs: int | None,
    seed: int | None,
    bad_rows: BadRows,
    accelerator: str,
    devices: int,
    workers: int,
    threads: int | None,
    skip_test: bool,
    as_json: bool,
) -> None:
    with plain_errors(threads):
        paths = named_paths(data)
        settings = with_overrides(with_corpora(load_recipe(recipe), paths, split), epochs, seed)
        options = RunOptions(
            accelerator=accelerator,
            devices=devices,
            workers=workers,
            bad_rows=bad_rows,
            progress_bar=not as_json,
            skip_test=skip_test,
        )
        result = fit(
            settings, target, paths, output, start_from=start_from, words_from=words_from, options=options, echo=echo
        )
    if is_first_process():
        click.echo(json.dumps(_record(result)) if as_json else _as_text(result))


def with_corpora(recipe: Recipe, paths: Mapping[str, Path], split: str | None) -> Recipe:
    """Return the recipe with the corpora named in `paths`: the recipe's own, or a kind with default settings.

    Raises:
        click.UsageError: a name is neither.
    """
    corpora = {}
    for name in paths:
        if name in recipe.corpora:
            corpora[name] = recipe.corpora[name]
        elif name in CORPUS_KINDS:
            corpora[name] = CorpusSettings(kind=name, split=split or default_split(name))
        else:
            raise click.UsageError(
                f"--data {name}=...: the recipe's corpora are {', '.join(recipe.corpora) or 'none'}, "
                f"the kinds are {', '.join(CORPUS_KINDS)}"
            )
    return replace(recipe, corpora=corpora)


def with_overrides(recipe: Recipe, epochs: int | None, seed: int | None) -> Recipe:
    """Return the recipe with another number of epochs, or another seed, where given."""
    if epochs is not None:
        recipe = replace(recipe, optimisation=replace(recipe.optimisation, epochs=epochs))
    return recipe if seed is None else replace(recipe, seed=seed)


def _as_text(result: RunResult) -> str:
    tables = [f"{name}, {result.part} part\n\n{markdown(scores)}" for name, scores in result.scores.items()]
    size = f"{result.trained_parameters:,} trained parameters, {result.checkpoint_bytes / 1e6:.1f} MB"
    return "\n\n".join([*tables, f"model: {result.folder / 'model'} ({size}); {result.seconds:.0f} s"])


def _record(result: RunResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "scores": {name: to_json(scores) for name, scores in result.scores.items()},
        "trained_parameters": result.trained_parameters,
        "checkpoint_bytes": result.checkpoint_bytes,
        "seconds": round(result.seconds, 1),
    }
