"""`attune bench serving`: a running server under load.

    attune serve --free-ports -- attune bench serving
    attune bench serving --url HOST:8001 --model speech_emotion --rate 1,2,4 recording.wav

Each model is asked under each load in turn, for `--seconds` after `--warmup`. A client is an address, to which the
server gives half of a model's places: what it refuses beyond that is counted as such. `attune serve --client-share 1`
gives it all of them. All requests go over one connection, which carries at most 256 calls at once, and of these the
server takes the same share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.report import hardware, hardware_line
from attune_client.bench.serving.asking import ask_server
from attune_client.bench.serving.clips import Clip, mixed_clips, read_clips
from attune_client.bench.serving.measuring import AtATime, Load, Measured, PerSecond, Plan, measure
from attune_client.bench.serving.options import (
    CONCURRENCY,
    MAX_CONCURRENCY,
    Several,
    reader,
    sample_files,
    server_pid_option,
)
from attune_client.bench.serving.report import (
    generator_line,
    json_line,
    latency_table,
    stage_table,
    throughput_table,
)
from attune_client.bench.serving.statistics import TritonStatistics
from attune_client.bench.serving.targets import TARGETS, make_target
from attune_client.commands.options import AUDIO_FILE, RealRange, json_option, server_options
from attune_client.installation import install_command
from attune_client.protocol.bounds import MAX_MUSIC_S, MIN_MUSIC_S

__all__ = ["serving"]


@click.command()
@click.argument("audio", nargs=-1, type=AUDIO_FILE)
@click.option(
    "--model",
    "models",
    type=click.Choice(TARGETS),
    multiple=True,
    default=TARGETS,
    show_default=True,
    help="Which models are asked, one after the other; may be given several times.",
)
@click.option(
    "--concurrency",
    type=Several(click.IntRange(1, MAX_CONCURRENCY), "n,n,..."),
    help=f"Closed loops: so many requests in flight; {','.join(map(str, CONCURRENCY))} without --rate.",
)
@click.option(
    "--rate",
    "rates",
    type=Several(RealRange(min=0, min_open=True), "r,r,..."),
    default=(),
    help="Open loops: so many requests a second, at random moments, from which latency counts.",
)
@click.option(
    "--goodput-limit",
    "limit_s",
    type=RealRange(min=0, min_open=True),
    default=1,
    show_default=True,
    help="Seconds within which an answer, of music its first chunk, has to come to be a good one.",
)
@click.option(
    "--music-seconds",
    type=RealRange(MIN_MUSIC_S, MAX_MUSIC_S),
    default=5,
    show_default=True,
    help="Length of the music.",
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw latency against load into a PNG.")
@click.option("--seconds", type=RealRange(min=0.1), default=10, show_default=True, help="Of each load, that count.")
@click.option("--warmup", type=RealRange(min=0), default=2, show_default=True, help="Seconds of it before those.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of recordings, and of the moments.")
@server_pid_option()
@json_option
@server_options
def serving(
    audio: tuple[Path, ...],
    models: tuple[str, ...],
    concurrency: tuple[int, ...] | None,
    rates: tuple[float, ...],
    limit_s: float,
    music_seconds: float,
    plot: Path | None,
    seconds: float,
    warmup: float,
    seed: int,
    server_pid: int | None,
    as_json: bool,
    url: str,
    timeout_s: float | None,
) -> None:
    """Put load on a running server: throughput, latency, errors, and where the time goes.

    AUDIO are recordings, sent as they are; without any, the samples of a clone, and cuts of them at 2, 4.5 and 8 s.
    """
    draw = None if plot is None else _drawing()
    clips = read_clips(audio) if audio else mixed_clips(sample_files(()))
    if concurrency is None:
        concurrency = () if rates else CONCURRENCY
    loads: list[Load] = [*map(AtATime, concurrency), *map(PerSecond, rates)]
    plan = Plan(seconds, warmup, limit_s, seed)
    measured = asyncio.run(_measure_all(clips, models, loads, plan, music_seconds, server_pid, url, timeout_s))
    if not as_json:
        click.echo(_tables(measured, clips))
    click.echo(json_line(measured, clips={clip.name: clip.seconds for clip in clips}))
    if draw is not None:
        draw(measured, hardware(), plot)


def _drawing() -> Callable[..., None]:
    """The function that draws; says before anything is measured that its library is missing."""
    try:
        from attune_client.bench.serving.plot import draw
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"--plot needs {error.name}, which is not installed: {install_command('train')}"
        ) from error
    return draw


async def _measure_all(
    clips: Sequence[Clip],
    models: Sequence[str],
    loads: Sequence[Load],
    plan: Plan,
    music_s: float,
    server_pid: int | None,
    url: str,
    timeout_s: float | None,
) -> list[Measured]:
    measured = []
    async with AsyncAttuneClient(url, timeout_s=timeout_s) as client, TritonStatistics(url) as statistics:
        read = reader(statistics, server_pid)
        for model in models:
            target = await make_target(client, model, clips, music_s)
            for load in loads:
                click.echo(f"{model}, {load} ...", err=True)
                measured.append(await measure(partial(ask_server, client, target.model), target, load, plan, read))
    return measured


def _tables(measured: Sequence[Measured], clips: Sequence[Clip]) -> str:
    lengths_s = [clip.seconds for clip in clips]
    parts = [
        hardware_line(),
        f"{len(clips)} recordings of {min(lengths_s):.1f} to {max(lengths_s):.1f} s",
        throughput_table(measured),
        latency_table(measured),
        *(_split(each) for each in _ends(measured)),
        generator_line(measured),
    ]
    return "\n\n".join(parts)


def _ends(measured: Sequence[Measured]) -> list[Measured]:
    """Of each model the first load and the last; the JSON has all of them."""
    models = dict.fromkeys(each.model for each in measured)
    loads = ([each for each in measured if each.model == model] for model in models)
    return [each for of_model in loads for each in (*of_model[:1], *of_model[1:][-1:])]


def _split(measured: Measured) -> str:
    told = ", ".join(f"{name} {1000 * time_s:.0f} ms" for name, time_s in measured.summary.stages_s.items())
    title = f"Where the time of {measured.model} goes, {measured.load}"
    return f"{title}{f' (it says itself: {told})' if told else ''}\n\n{stage_table(measured)}"
