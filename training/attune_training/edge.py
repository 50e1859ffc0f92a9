"""Shared by the commands of this package: options, and errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from attune_training.data.corpus import CORPUS_KINDS
from attune_training.machine import is_first_process
from attune_training.providers import ProviderError
from attune_weights import WeightsError

__all__ = ["DefaultGroup", "bad_rows_option", "data_option", "echo", "named_paths", "plain_errors"]

bad_rows_option = click.option(
    "--bad-rows",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="What to do with rows that cannot be used.",
)


class DefaultGroup(click.Group):
    """A group in which options without the name of a sub-command are those of `default`."""

    def __init__(self, name: str | None = None, *, default: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._default = default

    def named(self, args: Sequence[str], help_options: Sequence[str] = ("--help",)) -> list[str]:
        """Return the arguments with the sub-command's name in front; a call for help stays the group's own."""
        if args and args[0].startswith("-") and args[0] not in help_options:
            return [self._default, *args]
        return list(args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the name of the sub-command in place."""
        return super().parse_args(ctx, self.named(args, ctx.help_option_names))


def data_option(meaning: str) -> Callable[[Any], Any]:
    """Return the option `--data NAME=PATH`, which may be given several times."""
    kinds = ", ".join(CORPUS_KINDS)
    text = f"{meaning[0].upper()}{meaning[1:]} ({kinds}). May be repeated."
    return click.option("--data", multiple=True, required=True, metavar="NAME=PATH", help=text)


def named_paths(data: Sequence[str], default_name: str = "") -> dict[str, Path]:
    """Read `NAME=PATH` arguments; a path alone takes `default_name`.

    Raises:
        click.UsageError: an argument has no name, or a name comes twice.
    """
    paths: dict[str, Path] = {}
    for argument in data:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = default_name, argument
        if not name or not path:
            raise click.UsageError(f"--data {argument}: write NAME=PATH, such as ravdess=ravdess/")
        if name in paths:
            raise click.UsageError(f"--data {name}=...: given twice")
        paths[name] = Path(path)
    return paths


@contextmanager
def plain_errors(threads: int | None = None) -> Iterator[None]:
    """Report errors that a user can correct as one message, without a traceback; use `threads` CPU threads."""
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    except (ValueError, FileNotFoundError, ProviderError, WeightsError) as error:
        raise click.ClickException(str(error)) from error


def echo(line: str) -> None:
    """Print one line of progress to standard error; in distributed training, from the first process only."""
    if is_first_process():
        click.echo(line, err=True)
