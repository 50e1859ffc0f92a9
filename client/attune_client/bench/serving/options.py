"""What the benchmarks of a server have in common on their command lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import click

from attune_client.bench.serving.measuring import Reading
from attune_client.bench.serving.processor import server_processor_s
from attune_client.bench.serving.statistics import TritonStatistics

__all__ = ["CONCURRENCY", "MAX_CONCURRENCY", "Several", "reader", "sample_files", "server_pid_option"]

CONCURRENCY = (1, 2, 4, 8)
"""Requests in flight of the loads that are made without a choice."""

MAX_CONCURRENCY = 256
"""Calls at once that the server takes over one connection."""

_SAMPLES = Path("samples")


class Several(click.ParamType):
    """Numbers with commas between, each of the same kind; the value is a tuple."""

    def __init__(self, each: click.ParamType, name: str) -> None:
        self._each, self.name = each, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Convert to numbers; fails if one of them is not of the kind."""
        if isinstance(value, tuple):
            return value
        return tuple(self._each.convert(part.strip(), param, ctx) for part in str(value).split(","))


def server_pid_option(
    use: str = "to report the processor time of the server's processes",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--server-pid`, whose help says what for; `attune serve -- COMMAND` sets its variable."""
    return click.option(
        "--server-pid", type=int, envvar="ATTUNE_SERVER_PID", help=f"Process id of tritonserver, {use}."
    )


def sample_files(given: Sequence[Path]) -> list[Path]:
    """The recordings that are given, or those of a clone."""
    paths = list(given) or sorted(_SAMPLES.glob("*.wav"))
    if not paths:
        raise click.UsageError(f"there is no {_SAMPLES}/*.wav in this folder: name recordings")
    return paths


def reader(statistics: TritonStatistics, server_pid: int | None) -> Callable[[], Awaitable[Reading]]:
    """What reads the server's counters, and the processor time of its processes where they are on this machine."""

    async def read() -> Reading:
        return Reading(await statistics.read(), {} if server_pid is None else server_processor_s(server_pid))

    return read
