"""`attune bench instances`: servers of which one model has other numbers of instances and threads.

    attune bench instances --instances 1,2 --threads 1,2

Each server is started, put under load by `attune bench serving`, and stopped, one after the other: what a model should
be set to on a machine is measured on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from google.protobuf import text_format

from attune_client.bench.report import hardware, hardware_line
from attune_client.bench.serving.options import CONCURRENCY, MAX_CONCURRENCY, Several
from attune_client.bench.serving.report import table
from attune_client.commands.options import RealRange, json_option
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import EMOTION_ENCODER, EMOTION_RECOGNITION
from attune_ensemble.serving.configuration import read_config

__all__ = ["instances", "set_otherwise"]

_ATTUNE = (sys.executable, "-m", "attune_client")
_CONFIG = "config.pbtxt"
_INSTANCES = (1, 2)
_THREADS = (1,)


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a model is set, and one load on the ensemble that it is part of, as `attune bench serving` told it."""

    instances: int
    threads: int
    load: str
    answers_per_s: float
    p50_ms: float
    p99_ms: float
    processor_ms: float


@click.command()
@click.option(
    "--model",
    type=click.Choice([model.name for model in EMOTION_RECOGNITION.steps]),
    default=EMOTION_ENCODER.name,
    show_default=True,
    help="Which model is set; the load is on the ensemble that it is part of.",
)
@click.option(
    "--instances",
    "counts",
    type=Several(click.IntRange(1, 64), "n,n,..."),
    default=_INSTANCES,
    help=f"Of it.  [default: {','.join(map(str, _INSTANCES))}]",
)
@click.option(
    "--threads",
    type=Several(click.IntRange(1, 64), "n,n,..."),
    default=_THREADS,
    help=f"Of each instance.  [default: {','.join(map(str, _THREADS))}]",
)
@click.option(
    "--concurrency",
    type=Several(click.IntRange(1, MAX_CONCURRENCY), "n,n,..."),
    default=CONCURRENCY,
    help=f"Requests in flight.  [default: {','.join(map(str, CONCURRENCY))}]",
)
@click.option("--seconds", type=RealRange(min=0.1), default=10, show_default=True, help="Of each load, that count.")
@click.option(
    "--repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@json_option
def instances(
    model: str,
    counts: tuple[int, ...],
    threads: tuple[int, ...],
    concurrency: tuple[int, ...],
    seconds: float,
    repository: Path,
    as_json: bool,
) -> None:
    """Throughput of emotion_recognition against the instances and threads of one of its models.

    Starts a server for each setting, and needs none.
    """
    load = ("--concurrency", ",".join(map(str, concurrency)), "--seconds", f"{seconds:g}")
    settings = []
    for count, each in product(counts, threads):
        click.echo(f"{model}: {count} instances, {each} threads each ...", err=True)
        with set_otherwise(repository, model, count, each) as folder:
            settings += [_setting(count, each, told) for told in _put_under_load(folder, load)]
    if not as_json:
        click.echo(f"{hardware_line()}\n\nemotion_recognition with {model} set so\n\n{_table(settings)}\n")
    click.echo(json.dumps({"hardware": hardware(), "model": model, "settings": [asdict(each) for each in settings]}))


@contextmanager
def set_otherwise(repository: Path, model: str, count: int, threads: int) -> Iterator[Path]:
    """A repository of links to another one, of which one model, an ONNX graph, has so many instances and threads."""
    config = read_config(repository / model)
    config.instance_group[0].count = count
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    with tempfile.TemporaryDirectory(prefix="attune-instances-") as name:
        folder = Path(name)
        for entry in repository.resolve().iterdir():
            if entry.name != model:
                (folder / entry.name).symlink_to(entry)
        (folder / model).mkdir()
        for entry in (repository.resolve() / model).iterdir():
            if entry.name != _CONFIG:
                (folder / model / entry.name).symlink_to(entry)
        (folder / model / _CONFIG).write_text(text_format.MessageToString(config))
        yield folder


def _put_under_load(repository: Path, load: Sequence[str]) -> list[dict[str, Any]]:
    """Serve a repository for as long as it takes, and return the loads that were told; `ServerError` if it failed."""
    bench = (*_ATTUNE, "bench", "serving", "--model", EMOTION_RECOGNITION.name, "--json", *load)
    with tempfile.TemporaryDirectory(prefix="attune-log-") as logs:
        options = ("--free-ports", "--repository", str(repository), "--log-file", f"{logs}/server.log")
        done = subprocess.run([*_ATTUNE, "serve", *options, "--", *bench], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"`attune serve -- attune bench serving` failed: {done.stderr.strip()[-500:]}")
    loads: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["loads"]
    return loads


def _setting(count: int, threads: int, told: dict[str, Any]) -> _Setting:
    summary = told["summary"]
    total = summary["total"] or {"p50": 0.0, "p99": 0.0}
    spent_ms = sum(told["server_processor_ms"].values())
    return _Setting(
        count, threads, told["load"], summary["answers_per_s"], 1000 * total["p50"], 1000 * total["p99"], spent_ms
    )


def _table(settings: Sequence[_Setting]) -> str:
    heads = ["instances", "threads", "load", "answers/s", "against the first", "p50 ms", "p99 ms", "processor ms"]
    first = {each.load: each.answers_per_s for each in reversed(settings)}
    return table(heads, [_cells(each, first[each.load]) for each in settings], words=0)


def _cells(setting: _Setting, first_per_s: float) -> list[str]:
    ratio = f"{setting.answers_per_s / first_per_s:.2f}x" if first_per_s else ""
    figures = (setting.p50_ms, setting.p99_ms, setting.processor_ms)
    rates = [f"{setting.answers_per_s:.2f}", ratio]
    return [str(setting.instances), str(setting.threads), setting.load, *rates, *(f"{each:.0f}" for each in figures)]
