"""`attune bench server-cost`: the same requests to a server, and to the same models in this process.

    attune serve --free-ports -- attune bench server-cost

The models of this process are those of `--repository`, which has to be the one that is served. While one side is asked
the other has nothing to do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.report import hardware, hardware_line
from attune_client.bench.serving.asking import ask_server
from attune_client.bench.serving.clips import Clip, mixed_clips, read_clips
from attune_client.bench.serving.measuring import Plan
from attune_client.bench.serving.options import CONCURRENCY, Several, reader, sample_files, server_pid_option
from attune_client.bench.serving.processor import server_processor_s
from attune_client.bench.serving.statistics import Stage, TritonStatistics, differences
from attune_client.bench.serving.targets import Request, make_target
from attune_client.commands.options import AUDIO_FILE, RealRange, json_option, server_options
from attune_client.protocol.models import EMOTION_RECOGNITION, SPEECH_EMOTION
from attune_ensemble.cost.asking import LocalAsk
from attune_ensemble.cost.full import Row, Side, best_ratio, full_table, own_processor, take_rounds
from attune_ensemble.cost.idle import Step, Turns, processor_table, split_table, take_turns, time_steps
from attune_ensemble.serving.local import LocalModels

__all__ = ["server_cost"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The command line."""

    url: str
    timeout_s: float | None
    server_pid: int | None
    model: str
    concurrency: tuple[int, ...]
    rounds: int
    plan: Plan

    def spent(self) -> dict[str, float]:
        """Processor time of the server's processes until now, in seconds; empty where it is not known."""
        return {} if self.server_pid is None else server_processor_s(self.server_pid)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured: one request at a time, with the server's own count of that, and under load."""

    requests: tuple[Request, ...]
    turns: Turns
    stages: list[Stage]
    rows: list[Row]


@click.command("server-cost")
@click.argument("audio", nargs=-1, type=AUDIO_FILE)
@click.option(
    "--model",
    type=click.Choice([EMOTION_RECOGNITION.name, SPEECH_EMOTION.name]),
    default=EMOTION_RECOGNITION.name,
    show_default=True,
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository, the one that is served.",
)
@click.option(
    "--concurrency",
    type=Several(click.IntRange(1, 100), "n,n,..."),
    default=CONCURRENCY,
    help=f"Requests in flight.  [default: {','.join(map(str, CONCURRENCY))}]",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of either side.")
@click.option("--seconds", type=RealRange(min=0.1), default=5, show_default=True, help="Of each load, that count.")
@click.option("--warmup", type=RealRange(min=0), default=1, show_default=True, help="Seconds of it before those.")
@server_pid_option()
@json_option
@server_options
def server_cost(
    audio: tuple[Path, ...],
    model: str,
    repository: Path,
    concurrency: tuple[int, ...],
    rounds: int,
    seconds: float,
    warmup: float,
    server_pid: int | None,
    as_json: bool,
    url: str,
    timeout_s: float | None,
) -> None:
    """What a server adds to its models: the same requests with it, and in one process without it.

    AUDIO are recordings, sent as they are; without any, the samples of a clone, and cuts of them.
    """
    clips = read_clips(audio) if audio else mixed_clips(sample_files(()))
    asked = _Asked(url, timeout_s, server_pid, model, concurrency, rounds, Plan(seconds, warmup))
    with LocalModels(repository) as models:
        found = asyncio.run(_measure(models, clips, asked))
        steps = time_steps(models.call, repository, found.requests) if model == EMOTION_RECOGNITION.name else []
    if not as_json:
        click.echo(_tables(found, steps, asked))
    click.echo(_json(found, steps, asked))


async def _measure(models: LocalModels, clips: Sequence[Clip], asked: _Asked) -> _Found:
    async with (
        AsyncAttuneClient(asked.url, timeout_s=asked.timeout_s) as client,
        TritonStatistics(asked.url) as statistics,
    ):
        target = await make_target(client, asked.model, clips, music_s=0)
        ask = partial(ask_server, client, target.model)
        with LocalAsk(models, target.model, max(asked.concurrency)) as local:
            before = await statistics.read()
            turns = await take_turns(local, ask, target.requests, asked.rounds, asked.spent)
            stages = differences(before, await statistics.read())
            sides = Side(local, own_processor), Side(ask, reader(statistics, asked.server_pid))
            rows = await take_rounds(*sides, target, asked.concurrency, asked.plan, asked.rounds)
    return _Found(target.requests, turns, stages, rows)


def _tables(found: _Found, steps: Sequence[Step], asked: _Asked) -> str:
    local_ms = 1000 * median(pair.local_s for pair in found.turns.pairs)
    parts = [
        hardware_line(),
        f"{asked.model}, {len(found.requests)} requests, one at a time: {local_ms:.1f} ms in one process, and the "
        f"server adds {found.turns.added_ms:.1f} ms (medians)",
        *([split_table(steps, found.stages)] if steps else []),
        *([processor_table(found.turns, steps)] if found.turns.served_ms else []),
        full_table(found.rows),
        f"The server's best throughput is {best_ratio(found.rows):.2f} of the best in one process.",
    ]
    return "\n\n".join(parts)


def _json(found: _Found, steps: Sequence[Step], asked: _Asked) -> str:
    return json.dumps(
        {
            "hardware": hardware(),
            "model": asked.model,
            "added_ms": found.turns.added_ms,
            "best_ratio": best_ratio(found.rows),
            "steps": [asdict(step) for step in steps],
            "stages": [asdict(stage) for stage in found.stages],
            "turns": asdict(found.turns),
            "rows": [asdict(row) for row in found.rows],
        }
    )
