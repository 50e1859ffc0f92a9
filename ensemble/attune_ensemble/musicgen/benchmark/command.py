"""`attune bench music`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from attune_client.protocol.errors import AttuneError
from attune_ensemble.musicgen.benchmark.machine import copy_bandwidth, describe
from attune_ensemble.musicgen.benchmark.quality import Fidelity, fidelity_rows, fidelity_table
from attune_ensemble.musicgen.benchmark.report import decoder_table, draw, part_table
from attune_ensemble.musicgen.benchmark.rows import Measured, Setup, decoder_rows, part_rows
from attune_ensemble.musicgen.loading import SIZES, Numerics
from attune_ensemble.musicgen.threads import on_own_thread

__all__ = ["music"]


_SHORTEST_S = 0.1


class _Numbers(click.ParamType):
    """Numbers of the kind of `least`, none below it, with commas between them."""

    name = "numbers"

    def __init__(self, least: float) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            numbers = [type(self._least)(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if not numbers or not all(self._least <= number < math.inf for number in numbers):
            whole = "whole " if isinstance(self._least, int) else ""
            self.fail(f"{value!r} is no list of {whole}numbers from {self._least:g} on, such as 1,4", param, ctx)
        return numbers


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--random-weights", is_flag=True, help="What is measured unless --checkpoint names a folder.")
@click.option("--checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Real weights.")
@click.option("--batch", "batches", type=_Numbers(1), default="1,4", show_default=True, help="Pieces at a time.")
@click.option(
    "--seconds", "lengths", type=_Numbers(_SHORTEST_S), default="10", show_default=True, help="Length of a piece."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default=None, help="[default: cuda where there is one]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Counted runs of each row.")
@click.option("--compile", "compiled", is_flag=True, help="With torch.compile as well.")
@click.option("--check-quality", is_flag=True, help="Compare faster numerics with float32 instead of timing.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="PNG file to draw.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line alone.")
def music(
    size: str,
    random_weights: bool,
    checkpoint: Path | None,
    batches: list[int],
    lengths: list[float],
    device: str | None,
    threads: int | None,
    repeats: int,
    compiled: bool,
    check_quality: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time MusicGen: transformers' generate, this engine step by step, and the memory's speed."""
    if random_weights and checkpoint is not None:
        raise click.UsageError("--random-weights and --checkpoint exclude each other")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("there is no GPU that PyTorch can use: leave --device out, or say cpu")
    if threads:
        torch.set_num_threads(threads)
    setup = Setup(size, checkpoint, device or ("cuda" if torch.cuda.is_available() else "cpu"), repeats)
    try:
        if check_quality:
            _check_quality(setup, lengths[0], as_json)
        else:
            _time(setup, batches, lengths, compiled, plot, as_json)
    except AttuneError as error:
        raise click.ClickException(str(error)) from error


def _check_quality(setup: Setup, seconds: float, as_json: bool) -> None:
    others: list[Numerics] = ["int8", "bfloat16"] if setup.device == "cpu" else ["bfloat16", "float16"]
    rows: list[Fidelity] = []
    for row in fidelity_rows(setup, others, seconds):
        rows.append(row)
        click.echo(f"{row.numerics}: {row.tokens} tokens heard", err=True)
    if not as_json:
        click.echo(f"{describe(setup.device)}\n\n{fidelity_table(rows)}\n")
    click.echo(json.dumps({"rows": [asdict(row) for row in rows]}))


def _time(
    setup: Setup, batches: Sequence[int], lengths: Sequence[float], compiled: bool, plot: Path | None, as_json: bool
) -> None:
    bandwidth = on_own_thread(lambda: copy_bandwidth(setup.device))
    parts: list[Measured] = []
    rows: list[Measured] = []
    for row in part_rows(setup, lengths[0]):
        parts.append(row)
        click.echo(f"{row.name}: {1000 * row.wall_s:.1f} ms", err=True)
    for seconds in lengths:
        for batch in batches:
            for row in decoder_rows(setup, batch, seconds, compiled=compiled):
                rows.append(row)
                click.echo(f"{row.name}, batch {row.batch}: {row.speed:.2f} s/s", err=True)
    if not as_json:
        click.echo(f"{describe(setup.device)}; copy bandwidth {bandwidth / 1e9:.1f} GB/s\n")
        click.echo(f"{decoder_table(rows, bandwidth)}\n\n{part_table(parts)}\n")
    if plot is not None:
        draw(rows, f"MusicGen {setup.size}\n{describe(setup.device)}", plot)
    figures = [asdict(row) | {"speed": row.speed} for row in rows]
    click.echo(json.dumps({"bandwidth": bandwidth, "rows": figures, "parts": [asdict(row) for row in parts]}))
