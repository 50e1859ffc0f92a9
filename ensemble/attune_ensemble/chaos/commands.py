"""`attune chaos`: kill, pause, fill and overload a server, and see what its clients are told.

attune chaos --quick
attune chaos --only kill-idle --only kill-server
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from attune_client.bench.report import hardware
from attune_client.interruption import Interruptions
from attune_ensemble.chaos.catalogue import ROWS
from attune_ensemble.chaos.harness.case import Row, Settings, Workshop
from attune_ensemble.chaos.harness.report import HEADING, details, json_line, table_line
from attune_ensemble.chaos.harness.run import Result, run_all

__all__ = ["chaos"]

_ROOT = Path(__file__).parents[3]
_END_S = 30.0
"""How long it may take after a signal to end the servers and to tell what was found; then they are left to janitors."""


@click.command()
@click.option(
    "--only",
    type=click.Choice([row.name for row in ROWS]),
    multiple=True,
    metavar="ROW",
    help="Run this row; may be given again.  [default: all but those that take their time]",
)
@click.option("--list", "list_only", is_flag=True, help="List the rows, and run none.")
@click.option("--quick", is_flag=True, help="Run a few rows on one server, and less of each.")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option(
    "--audio",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=_ROOT / "samples/sense_and_sensibility_0890.wav",
    show_default="a sample of Attune's sources",
    help="A recording of speech, of which a few seconds are sent.",
)
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/chaos"),
    show_default=True,
    help="Where each server's log and events are kept.",
)
def chaos(only: tuple[str, ...], list_only: bool, quick: bool, repository: Path, audio: Path, logs: Path) -> None:
    """Kill, pause, fill and overload servers of its own, on loopback, and see what clients are told.

    Each row starts `attune serve`, or shares one. A row passes if every call got an answer or a clean error in time,
    the server served again soon, and nothing was left behind. The exit status is 0 if all rows passed, else 1.
    """
    chosen = choose(only, quick=quick)
    if list_only:
        for row in ROWS:
            click.echo(f"{row.name}\t{row.what}\t{_remark(row)}")
        return
    if not any(repository.glob("*/config.pbtxt")):
        raise click.ClickException(f"there is no model repository at {repository.resolve()}: name one by --repository")
    settings = Settings(repository.resolve(), audio, logs.resolve(), quick=quick)
    with Interruptions(_END_S), Workshop(settings) as workshop:
        results = _run(chosen, workshop)
    if not all(result.passed for result in results):
        raise SystemExit(1)


def choose(only: Sequence[str], *, quick: bool) -> list[Row]:
    """The rows that are named; else the quick ones, or all that do not have to be named."""
    if only:
        return [row for row in ROWS if row.name in only]
    return [row for row in ROWS if not row.alone and (not quick or row.quick_limit_s is not None)]


def _remark(row: Row) -> str:
    limit = f"at most {row.limit_s:g} s"
    if row.alone:
        return f"{limit}, only when it is named"
    return limit if row.quick_limit_s is None else f"{limit}, or {row.quick_limit_s:g} s with --quick"


def _run(rows: Sequence[Row], workshop: Workshop) -> list[Result]:
    click.echo(f"hardware: {hardware()}")
    click.echo(HEADING)
    results = []
    try:
        for result in run_all(rows, workshop):
            click.echo(table_line(result))
            results.append(result)
    finally:  # also of a run that is ended early
        _tell_details(results)
    click.echo(json_line(results, hardware()))
    return results


def _tell_details(results: Sequence[Result]) -> None:
    for result in results:
        for line in details(result):
            click.echo(line)
