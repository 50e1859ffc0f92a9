"""A finished table as Markdown: every measure on every split side by side, with the paper's figure where it has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attune_training.config import DIMENSIONS
from attune_training.evaluation.report import DimensionScore, Interval
from attune_training.experiments.paper import PaperRow, checks, paper
from attune_training.experiments.results import TableResult, command_line
from attune_training.experiments.runs import Cell, Failed, Measured

__all__ = ["markdown"]

_NOTHING = "–"

_WHY_BOTH_SPLITS = (
    "A random split puts the same speakers, and in scripted dialogues the same sentences, on both sides, so a model "
    "may answer from memory; a speaker-independent split says how it does on voices it never heard. The paper's split "
    "is random: compare its figures with that column, and trust the speaker-independent one."
)
_METHOD = (
    "Losses are those of the test part, in every row: mean squared error without label smoothing for valence, Huber's "
    "(delta 1) for arousal and dominance. The paper does not say which loss each of its rows reports. In brackets: "
    "95 % intervals from 1,000 bootstrap samples of the test utterances. They do not cover another choice of speakers, "
    "nor another seed.",
    "The average is the mean of the three losses. It has no interval, since valence is tested on other utterances than "
    "arousal and dominance where they are trained separately: the random split is stratified by each model's own "
    "targets. A speaker-independent split is the same for all models.",
    "Checkpoints hold what was trained, in float16. Beside them: the whole model in float32, frozen towers included; "
    "'fewer' is against training all of it. All are sums over the models of the row. Seconds are those of the last "
    "start of each run, summed over the row's runs.",
)
_POOLED = (
    "Where each session is left out in turn, the predictions for all of them are pooled before they are measured: "
    "every utterance counts once. The sessions one by one are in results.json."
)


def markdown(result: TableResult, hardware: str) -> str:
    """Return the whole report."""
    table = paper().tables[result.table]
    blocks = [
        f"# {table.title}, on {result.subject.corpus.name}",
        "\n".join(f"**{note}**" for note in result.notes),
        _WHY_BOTH_SPLITS,
        "## Average loss",
        _average_table(result),
        *(block for name in DIMENSIONS for block in (f"## {name.capitalize()}", _dimension_table(result, name))),
        "## Size and time",
        _cost_table(result),
        *_failures(result),
        "## What follows from the paper's own columns",
        "\n".join(f"- {check}." for check in checks(paper())),
        "## How this was measured",
        "\n".join(f"- {line}" for line in _method(result, hardware)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _average_table(result: TableResult) -> str:
    header = ["model", "paper, as printed", "paper, from its columns", *(split.label for split in result.splits)]
    return _table(
        header,
        (
            [
                row.label,
                _number(row.average),
                _NOTHING if row.average_of_columns is None else f"{row.average_of_columns:.4f}",
                *_cells(cells, lambda cell: f"{cell.mean_loss:.4f}"),
            ]
            for row, cells in _rows(result)
        ),
    )


def _dimension_table(result: TableResult, name: str) -> str:
    labels = [split.label for split in result.splits]
    header = ["model", "loss: paper", *(f"loss: {label}" for label in labels)]
    header += ["PCC: paper", *(f"PCC: {label}" for label in labels)]
    header += [f"{measure}: {label}" for measure in ("CCC", "RMSE", "n") for label in labels]
    return _table(header, (_dimension_row(row, cells, name) for row, cells in _rows(result)))


def _dimension_row(row: PaperRow, cells: Sequence[Cell], name: str) -> list[str]:
    def each(write: Callable[[DimensionScore], str]) -> list[str]:
        return _cells(cells, lambda cell: write(cell.dimensions[name]))

    return [
        row.label,
        _number(row.loss.get(name)),
        *each(lambda item: _with_interval(item.loss, item.loss_interval, 4)),
        _number(row.pcc.get(name)),
        *each(lambda item: _with_interval(item.pcc, item.pcc_interval, 3)),
        *each(lambda item: _with_interval(item.ccc, item.ccc_interval, 3)),
        *each(lambda item: _with_interval(item.rmse, item.rmse_interval, 3)),
        *each(lambda item: str(item.count)),
    ]


def _cost_table(result: TableResult) -> str:
    header = ["model", "trained parameters", "checkpoint, MB", "whole model in float32, MB"]
    header += [f"seconds: {split.label}" for split in result.splits]
    storage = paper().storage
    lines = [
        [row.label, *_size(cells), *_cells(cells, lambda cell: f"{cell.seconds:.0f}")] for row, cells in _rows(result)
    ]
    stated = [
        f"the paper ({storage.section})",
        f"~{storage.fewer_trained_percent:.0f} % fewer",
        f"~{storage.checkpoint_mb:.0f}",
        f"~{storage.full_mb:.0f}",
    ]
    return _table(header, [*lines, stated + [_NOTHING] * len(result.splits)])


def _size(cells: Sequence[Cell]) -> list[str]:
    """Return trained parameters and the two sizes; they are the same on every split."""
    for cell in cells:
        if isinstance(cell, Measured):
            sizes = (_megabytes(cell.checkpoint_bytes), _megabytes(cell.full_checkpoint_bytes))
            fewer = 100 * (1 - cell.trained_parameters / cell.total_parameters)
            return [f"{cell.trained_parameters:,} ({fewer:.1f} % fewer)", *sizes]
    return [_NOTHING] * 3


def _failures(result: TableResult) -> list[str]:
    if not result.failures:
        return []
    labels = {name: row.label for name, row in paper().tables[result.table].rows.items()}
    lines = [f"- {labels[name]}, {split.label}: {failed.reason}" for name, split, failed in result.failures]
    return ["## Failed", "\n".join(lines)]


def _method(result: TableResult, hardware: str) -> list[str]:
    recipe, corpus = result.recipe, result.subject.corpus
    pooled = [_POOLED] if any(len(split.policies) > 1 for split in result.splits) else []
    return [
        *_METHOD,
        *pooled,
        f"Towers: {recipe.model.towers}. Epochs: at most {recipe.optimisation.epochs}. Seeds: one, {recipe.seed}.",
        f"{corpus.name}: {len(corpus.utterances)} utterances, digest {corpus.digest[:12]}.",
        f"Hardware: {hardware}. Sources: {', '.join(result.git_revisions) or 'no run finished'}.",
        f"Command: `{command_line()}`",
    ]


def _rows(result: TableResult) -> list[tuple[PaperRow, tuple[Cell, ...]]]:
    rows = paper().tables[result.table].rows
    return [(rows[name], cells) for name, cells in result.cells.items()]


def _cells(cells: Sequence[Cell], write: Callable[[Measured], str]) -> list[str]:
    return ["failed" if isinstance(cell, Failed) else write(cell) for cell in cells]


def _with_interval(value: float, interval: Interval, decimals: int) -> str:
    return f"{value:.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def _number(value: float | None) -> str:
    """Return four decimals, or as many as are printed where that is more."""
    return _NOTHING if value is None else max(f"{value:.4f}", str(round(value, 5)), key=len)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
