"""`attune bench scaling`: what a request costs against the length of its audio, and against its batch.

    attune serve --free-ports -- attune bench scaling

One request at a time: recordings of 2 s to 10 minutes to `speech_emotion`, and a segment up to 16 times in one request
to `emotion_recognition`. Cost is time and, where the server is on this machine, the processor time of its processes,
which other work on the machine changes less.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import click
import numpy as np

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.report import hardware, hardware_line
from attune_client.bench.serving.asking import Ask, ask_server, clock
from attune_client.bench.serving.clips import clips_of_length, read_clips
from attune_client.bench.serving.options import Several, sample_files, server_pid_option
from attune_client.bench.serving.processor import server_processor_s
from attune_client.bench.serving.report import table
from attune_client.bench.serving.targets import Request, make_target, speech_rows
from attune_client.commands.options import AUDIO_FILE, RealRange, json_option, server_options
from attune_client.protocol.bounds import MAX_SPEECH_S
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import EMOTION_RECOGNITION, REGRESSOR_MAX_BATCH, SPEECH_EMOTION

__all__ = ["Cost", "scaling"]

_LENGTHS_S = (2, 8, 30, 60, 120, 300, 600)
_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Cost:
    """What requests of one size took: `size` is the seconds of their audio, or the rows of their batch.

    `processor_s` is the server's, of one request on average; None where it is not known.
    """

    size: float
    times_s: tuple[float, ...]
    processor_s: float | None

    @property
    def median_s(self) -> float:
        """Median time of a request, in seconds."""
        return median(self.times_s)


@click.command()
@click.argument("audio", nargs=-1, type=AUDIO_FILE)
@click.option(
    "--lengths",
    "lengths_s",
    type=Several(RealRange(min=1, max=MAX_SPEECH_S), "s,s,..."),
    default=_LENGTHS_S,
    help=f"Seconds of audio.  [default: {','.join(map(str, _LENGTHS_S))}]",
)
@click.option(
    "--batches",
    type=Several(click.IntRange(1, REGRESSOR_MAX_BATCH), "n,n,..."),
    default=_BATCHES,
    help=f"Rows of a request.  [default: {','.join(map(str, _BATCHES))}]",
)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Counted requests of each size.")
@server_pid_option()
@json_option
@server_options
def scaling(
    audio: tuple[Path, ...],
    lengths_s: tuple[float, ...],
    batches: tuple[int, ...],
    runs: int,
    server_pid: int | None,
    as_json: bool,
    url: str,
    timeout_s: float | None,
) -> None:
    """Cost of a request against the length of its audio and against its batch, on a running server.

    AUDIO are recordings of one sample rate, joined to the lengths that are asked for; else the samples of a clone.
    """
    paths = sample_files(audio)

    async def measure() -> tuple[list[Cost], list[Cost]]:
        async with AsyncAttuneClient(url, timeout_s=timeout_s) as client:
            of_lengths = await _lengths(client, paths, lengths_s, runs, server_pid)
            return of_lengths, await _batches(client, paths, batches, runs, server_pid)

    of_lengths, of_batches = asyncio.run(measure())
    if not as_json:
        click.echo(hardware_line())
        click.echo(f"\n{SPEECH_EMOTION.name} against the length of a recording\n\n{_table(of_lengths, 'audio s')}\n")
        click.echo(f"{EMOTION_RECOGNITION.name} against the batch\n\n{_table(of_batches, 'row')}\n")
    costs = {"lengths": of_lengths, "batches": of_batches}
    told = {name: [asdict(each) | {"median_s": each.median_s} for each in rows] for name, rows in costs.items()}
    click.echo(json.dumps({"hardware": hardware()} | told))


async def _lengths(
    client: AsyncAttuneClient, paths: Sequence[Path], lengths_s: Sequence[float], runs: int, server_pid: int | None
) -> list[Cost]:
    target = await make_target(client, SPEECH_EMOTION.name, clips_of_length(paths, lengths_s), music_s=0)
    ask = partial(ask_server, client, target.model)
    return [await cost_of(ask, request, request.audio_s, runs, server_pid) for request in target.requests]


async def _batches(
    client: AsyncAttuneClient, paths: Sequence[Path], batches: Sequence[int], runs: int, server_pid: int | None
) -> list[Cost]:
    segments = [segment for clip in read_clips(paths) for segment in await speech_rows(client, clip)]
    longest = max(segments, key=lambda segment: segment.audio_s)
    ask = partial(ask_server, client, EMOTION_RECOGNITION)
    requests = [_repeated(longest, rows) for rows in batches]
    return [
        await cost_of(ask, request, rows, runs, server_pid) for rows, request in zip(batches, requests, strict=True)
    ]


def _repeated(request: Request, rows: int) -> Request:
    """The same row that many times in one request."""
    return replace(request, inputs={name: np.repeat(array, rows, axis=0) for name, array in request.inputs.items()})


async def cost_of(ask: Ask, request: Request, size: float, runs: int, server_pid: int | None) -> Cost:
    """Ask once to warm up, then `runs` times, one after the other; `ServerError` for what is not answered."""
    await _time_of(ask, request)
    before_s = _processor_s(server_pid)
    times_s = tuple([await _time_of(ask, request) for _ in range(runs)])
    spent_s = _processor_s(server_pid) - before_s
    return Cost(size, times_s, spent_s / runs if server_pid is not None else None)


async def _time_of(ask: Ask, request: Request) -> float:
    sample = await ask(request, clock())
    if not sample.is_answered:
        raise ServerError(f"{request.name} was not answered: {sample.error}")
    return sample.latency_s


def _processor_s(server_pid: int | None) -> float:
    return 0.0 if server_pid is None else sum(server_processor_s(server_pid).values())


def _table(costs: Sequence[Cost], unit: str) -> str:
    """Time and processor time of a request, and of a unit of its size, with the ratio to the first row."""
    heads = [
        f"size, {unit}",
        "s",
        "min..max s",
        f"ms each {unit}",
        "against the first",
        "processor s",
        f"processor ms each {unit}",
    ]
    first = costs[0].median_s / costs[0].size if costs else 1.0
    return table(heads, [_cells(cost, first) for cost in costs], words=0) + _growth(costs)


def _cells(cost: Cost, first_s: float) -> list[str]:
    each_s = cost.median_s / cost.size
    spent = [] if cost.processor_s is None else [cost.processor_s, 1000 * cost.processor_s / cost.size]
    return [
        f"{cost.size:g}",
        f"{cost.median_s:.3f}",
        f"{min(cost.times_s):.3f}..{max(cost.times_s):.3f}",
        f"{1000 * each_s:.1f}",
        f"{each_s / first_s:.2f}x",
        *([f"{spent[0]:.2f}", f"{spent[1]:.1f}"] if spent else ["", ""]),
    ]


def _growth(costs: Sequence[Cost]) -> str:
    """The power of the size that the time grows with, by least squares of the logarithms: 1 is linear."""
    if len(costs) < 2:
        return ""
    power, _ = np.polyfit(np.log([cost.size for cost in costs]), np.log([cost.median_s for cost in costs]), 1)
    return f"\n\nTime grows with the power {power:.2f} of it."
