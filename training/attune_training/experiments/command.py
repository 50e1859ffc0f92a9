"""`attune experiments table1|table2|corpora`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from attune_training.data.corpus import CORPUS_KINDS, BadRows, open_corpus
from attune_training.edge import echo, named_paths, plain_errors
from attune_training.experiments.corpora import corpora
from attune_training.experiments.markdown import markdown
from attune_training.experiments.paper import TableName
from attune_training.experiments.picture import draw_table
from attune_training.experiments.plan import EVERY_SESSION, choose_splits, plan_runs, table_rows
from attune_training.experiments.results import TableResult, to_json
from attune_training.experiments.runs import Subject, check_folders, measure
from attune_training.fitting.command import RUN_OPTIONS, command_with, with_corpora, with_overrides
from attune_training.fitting.folder import RunError
from attune_training.fitting.run import RunOptions
from attune_training.fitting.settings import Recipe, load_recipe
from attune_training.machine import hardware_line, is_first_process
from attune_weights.files import write_json

__all__ = ["experiments", "run_table"]

_RESULTS = "results.json"

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--data",
        required=True,
        metavar="NAME=PATH",
        help=f"The corpus: one of the recipe by its name, or any by its kind ({', '.join(CORPUS_KINDS)}).",
    ),
    click.option("--output", type=click.Path(path_type=Path), required=True, help="A folder; the same one resumes."),
    click.option(
        "--split",
        "splits",
        multiple=True,
        metavar="POLICY",
        help=f"May be repeated; {EVERY_SESSION} alone leaves out each session in turn.  "
        "[default: stratified, and a speaker-independent one: the last session left out, or held-out-speakers]",
    ),
    *RUN_OPTIONS,
)


@click.group()
def experiments() -> None:
    """Run the paper's Table I or II and set the results beside the paper's; or count what corpora hold.

    Runs lie below the output folder and resume; a finished one is read back. results.md, results.json and results.png
    are written at the end.
    """


def _command(table: TableName, help_text: str) -> None:
    def run(**arguments: Any) -> None:
        _run(table, **arguments)

    experiments.add_command(command_with(_OPTIONS, table, help_text, run))


_command("table1", "The six architectures without LoRA.")
_command("table2", "LoRA of rank 4, 8 and 16 on the cross-modal transformer.")


experiments.add_command(corpora)


def _run(
    table: TableName,
    data: str,
    output: Path,
    recipe: str,
    splits: tuple[str, ...],
    epochs: int | None,
    seed: int | None,
    bad_rows: BadRows,
    accelerator: str,
    devices: int,
    workers: int,
    threads: int | None,
    as_json: bool,
) -> None:
    with plain_errors(threads):
        ((name, path),) = named_paths((data,)).items()
        settings = with_overrides(with_corpora(load_recipe(recipe), {name: path}, None), epochs, seed)
        options = RunOptions(
            accelerator=accelerator, devices=devices, workers=workers, bad_rows=bad_rows, progress_bar=not as_json
        )
        subject = Subject(name, path, open_corpus(settings.corpora[name].kind, path, bad_rows))
        result = run_table(table, settings, subject, splits, output, options)
        if is_first_process():
            report, record = _write(result, output, hardware_line(accelerator))
            click.echo(json.dumps(record) if as_json else report)
    if result.failures:
        raise click.exceptions.Exit(1)


def run_table(
    table: TableName, recipe: Recipe, subject: Subject, asked: tuple[str, ...], output: Path, options: RunOptions
) -> TableResult:
    """Run every row of a table on every split; a failed row does not affect the others.

    Raises:
        RunError: the folder holds another table, or runs of another recipe or other data.
        SplitError: the corpus cannot be split in one of the ways `asked` for.
        ProviderError: no segmenter is installed, which the evaluation needs.
        WeightsError: the towers' weights cannot be fetched.
    """
    splits = choose_splits(asked, subject.corpus.utterances)
    runs = {
        row.name: [plan_runs(row, split, recipe, subject.name, output) for split in splits]
        for row in table_rows(table, recipe)
    }
    _check_table(table, output)
    check_folders([run for row in runs.values() for cell in row for run in cell], subject)
    cells = {name: tuple(measure(cell, subject, options, echo) for cell in row) for name, row in runs.items()}
    return TableResult(table, subject, recipe, splits, cells)


def _check_table(table: TableName, output: Path) -> None:
    path = output / _RESULTS
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))["table"]) != table:
        raise RunError(f"{output} holds the results of {found}: choose another --output for {table}")


def _write(result: TableResult, output: Path, hardware: str) -> tuple[str, dict[str, Any]]:
    """Write the report, the data and the picture; return the first two."""
    report, record = markdown(result, hardware), to_json(result, hardware)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text(report, encoding="utf-8")
    write_json(output / _RESULTS, record)
    draw_table(result, output / "results.png")
    return report, record
