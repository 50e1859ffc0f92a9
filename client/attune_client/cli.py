"""The `attune` command: a group whose sub-commands are entry points of the other packages.

A sub-command is imported when it is called, so `attune --help` needs no extra; one whose extra is
missing says which extra to install.
"""

from __future__ import annotations

import difflib
import os
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from attune_client.failures import DEBUG_VARIABLE, one_line_errors
from attune_client.installation import DISTRIBUTION, install_command
from attune_client.interruption import usual_signals
from attune_client.protocol.privacy import NO_TELEMETRY

COMMANDS = "attune.commands"
BENCHMARKS = "attune.benchmarks"


class EntryPointGroup(click.Group):
    """A click group whose sub-commands are the installed entry points of one group."""

    def __init__(self, name: str | None = None, *, entry_point_group: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._entry_point_group = entry_point_group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the sub-commands, sorted."""
        return sorted({point.name for point in entry_points(group=self._entry_point_group)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the sub-command of that name; if its extra is missing, return a command that says so."""
        os.environ.update(NO_TELEMETRY)  # before any library is imported, and inherited by every child process
        for point in entry_points(group=self._entry_point_group, name=cmd_name):
            return _load(point)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does; the error for an unknown name lists similar ones."""
        names = self.list_commands(ctx)
        if not ctx.resilient_parsing and args[0] not in names and not args[0].startswith("-"):
            near = " or ".join(repr(name) for name in difflib.get_close_matches(args[0], names))
            ctx.fail(f"there is no command {args[0]!r}" + (f"; did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)


class MainGroup(EntryPointGroup):
    """The top-level command: any exception of a sub-command becomes one line."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the arguments; `--help` and `--version` are handled here."""
        with one_line_errors(debug=False):
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command."""
        with one_line_errors(debug=ctx.params["debug"]):
            return super().invoke(ctx)


def _load(point: EntryPoint) -> click.Command:
    try:
        command: click.Command = point.load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("attune_"):
            raise
        return _unavailable(point, error.name or "a package")
    if point.module.partition(".")[0] != __package__:
        usual_signals()
    return command


def _unavailable(point: EntryPoint, missing: str) -> click.Command:
    """Return a substitute command that says what to install, with the same name and any arguments."""
    install = install_command(point.extras[0] if point.extras else "client")
    help_text = f"(needs: {install})"

    @click.command(point.name, help=help_text, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(f"`attune {point.name}` needs {missing}, which is not installed: {install}")

    return command


@click.group(
    cls=MainGroup,
    entry_point_group=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name=DISTRIBUTION)
@click.option("--debug", is_flag=True, envvar=DEBUG_VARIABLE, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Speech in, therapeutic music out."""


@click.group(cls=EntryPointGroup, entry_point_group=BENCHMARKS)
def bench() -> None:
    """Time a server under load, its pipeline, what it costs, the encoders, or the music engine by itself."""
