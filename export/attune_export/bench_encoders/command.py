"""`attune bench encoders`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from attune_client.bench.report import hardware_line
from attune_client.protocol.bounds import MAX_SEGMENT_S
from attune_export.bench_encoders import towers
from attune_export.bench_encoders.clip import Clip
from attune_export.bench_encoders.clips import Tokens, cut_clips, labelled_clips
from attune_export.bench_encoders.graphs import needed
from attune_export.bench_encoders.jobs import Preparation, RateMeter, RowJob
from attune_export.bench_encoders.results import median_rates, operations_of, results
from attune_export.bench_encoders.tables import ccc_table, rate_line, row_table, skipped_list
from attune_export.bench_encoders.towers import Tower, TowerName
from attune_export.bench_encoders.turns import Measurements, take_turns
from attune_export.bench_encoders.ways import Device, Row, chosen, unavailable
from attune_export.bench_encoders.worker import RowFailed, Worker
from attune_export.floor import floor_table
from attune_training.edge import named_paths, plain_errors

__all__ = ["encoders"]

_CLIPS, _GPU_CLIPS = 12, 96


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the benchmark."""

    tower: Tower
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    clips: tuple[Clip, ...]
    labelled: Mapping[str, tuple[Clip, ...]]
    device: Device
    threads: int
    repeats: int
    rate_size: int | None


def _lengths(context: click.Context, parameter: click.Parameter, value: str) -> list[float]:
    try:
        seconds = [float(text) for text in value.split(",")]
    except ValueError:
        seconds = []
    if not seconds or not all(0.1 <= length <= MAX_SEGMENT_S for length in seconds):
        raise click.BadParameter(f"{value!r} is no list of lengths from 0.1 to {MAX_SEGMENT_S:g} s, such as 2,4.5,8")
    return seconds


@click.command()
@click.option(
    "--tower",
    type=click.Choice(towers.NAMES),
    default="shipped",
    show_default=True,
    help="Those that ship, or the paper's HuBERT-base and BERT-base; tiny is for rehearsals alone.",
)
@click.option("--random-weights", is_flag=True, help="Weights from a fixed seed in the towers' sizes; no download.")
@click.option(
    "--artifacts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with saved regressors, valence/ and arousal_dominance/, in place of those that ship.",
)
@click.option(
    "--folder",
    "data",
    multiple=True,
    metavar="KIND=PATH",
    help="A corpus: on its test part the change of CCC is measured. May be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Clips of a test part, evenly from all of it.",
)
@click.option(
    "--seconds",
    callback=_lengths,
    default="2,4.5,8",
    show_default=True,
    metavar="S,...",
    help="Lengths of the clips that are timed, each spread by 15 %.",
)
@click.option("--clips", type=click.IntRange(min=1), help=f"How many.  [default: {_CLIPS}; on a GPU {_GPU_CLIPS}]")
@click.option(
    "--rows",
    metavar="NAME[:KEY=VALUE...],...",
    help="The rows, the first of which the others are compared with, with their settings: batched:size=8. "
    "[default: all, the paper's way first]",
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Timed passes of each row.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each row.  [default: all]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where there is one]")
@click.option(
    "--graphs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep models and graphs in this folder for the next run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line alone.")
def encoders(
    tower: TowerName,
    random_weights: bool,
    artifacts: Path | None,
    data: tuple[str, ...],
    limit: int,
    seconds: list[float],
    clips: int | None,
    rows: str | None,
    repeats: int,
    threads: int | None,
    device: Device | None,
    graphs: Path | None,
    as_json: bool,
) -> None:
    """Time the emotion encoders, from the paper's way to the cheapest, beside what they cost at least."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    regressors = Tower(tower, random_weights or tower == "tiny", artifacts)
    if tower == "paper" and not random_weights and artifacts is None:
        raise click.UsageError("no regressors with the paper's towers ship: give --random-weights, or --artifacts")
    with plain_errors():
        wanted = chosen([name for name in (rows or "").split(",") if name])
        skipped = {row.name: why for row in wanted if (why := unavailable(row, device))}
        usable = tuple(row for row in wanted if row.name not in skipped)
        if not usable:
            raise ValueError(f"no row can be measured\n{skipped_list(skipped)}")
        tokens = regressors.tokens()
        count = clips or (_CLIPS if device == "cpu" else _GPU_CLIPS)
        run = _Run(
            regressors,
            usable,
            skipped,
            tuple(cut_clips(seconds, count, tokens)),
            _test_parts(data, limit, tokens),
            device,
            threads or len(os.sched_getaffinity(0)),
            repeats,
            256 if tower == "tiny" else None,
        )
    folder = nullcontext(str(graphs)) if graphs else tempfile.TemporaryDirectory(prefix="attune-encoders-")
    with folder as place:
        try:
            measured = _measure(run, Path(place))
        except RowFailed as error:
            raise click.ClickException(str(error)) from error
    _report(run, measured, as_json)


def _test_parts(data: Sequence[str], limit: int, tokens: Tokens) -> dict[str, tuple[Clip, ...]]:
    paths = named_paths(data, default_name="manifest")
    return {kind: tuple(labelled_clips(kind, path, limit, tokens)) for kind, path in paths.items()}


def _measure(run: _Run, folder: Path) -> Measurements:
    _say("making the models and graphs")
    wanted = frozenset(name for row in run.rows for name in needed(row))
    Worker(Preparation(run.tower, wanted, folder)).close()
    jobs = {row.name: RowJob(row, folder, run.device, run.threads, run.clips) for row in run.rows}
    return take_turns(jobs, RateMeter(run.device, run.threads, run.rate_size), run.repeats, run.labelled, say=_say)


def _report(run: _Run, measured: Measurements, as_json: bool) -> None:
    operations = operations_of(run.tower.name, run.clips)
    found = results(run.rows, measured, run.clips, operations, run.labelled)
    rates = median_rates(measured.rates)
    skipped = {**run.skipped, **measured.failures}
    if not as_json:
        click.echo(_heading(run))
        parts = [floor_table(), rate_line(rates, operations, len(run.clips)), row_table(found)]
        parts += [ccc_table(found)] if run.labelled else []
        parts += [skipped_list(skipped)] if skipped else []
        click.echo("\n\n".join(["", *parts, ""]))
    record: dict[str, Any] = {
        "tower": run.tower.name,
        "random_weights": run.tower.random_weights,
        "hardware": _heading(run),
        "clips_s": [round(clip.duration_s, 2) for clip in run.clips],
        "operations": operations,
        "rates": rates,
        "rows": [result.record() for result in found],
        "skipped": skipped,
    }
    click.echo(json.dumps(record))


def _heading(run: _Run) -> str:
    line = f"{hardware_line()}, torch {torch.__version__}, {run.threads} threads"
    if run.device == "cuda":
        line += f"; {torch.cuda.get_device_name()}"
    weights = "random" if run.tower.random_weights else "trained"
    lengths = [clip.duration_s for clip in run.clips]
    return (
        f"{line}; {run.tower.name} towers, {weights} weights; {len(lengths)} clips of {min(lengths):.1f} to "
        f"{max(lengths):.1f} s, {sum(lengths) / len(lengths):.1f} s on average; {run.repeats} passes"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
