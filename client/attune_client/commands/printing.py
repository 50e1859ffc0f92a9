"""Printing of results: a table for a terminal, plain lines for a pipe, or JSON."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Printer", "echo_json", "json_text"]

Row = tuple[str, str]


class Printer:
    """Prints labelled values: two columns on a terminal; otherwise a line each, label and value separated by a tab.

    `err`: print to standard error, because standard output is used for other data.
    """

    def __init__(self, *, err: bool = False) -> None:
        self._err = err
        self._console = Console(stderr=err, highlight=False)

    def heading(self, label: str, value: str) -> None:
        """Print a heading of the following rows."""
        if self._console.is_terminal:
            self._console.print(Text(value, style="bold underline"))
        else:
            self._line(label, value)

    def rows(self, *rows: Row) -> None:
        """Print rows; values are plain text, so brackets are not markup."""
        if not self._console.is_terminal:
            for label, value in rows:
                self._line(label, value)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", min_width=12, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in rows:
            grid.add_row(label, Text(value))
        self._console.print(grid)

    def paragraphs(self, label: str, text: str) -> None:
        """Print lines of a text under a blank line; in a pipe each after the label."""
        if not self._console.is_terminal:
            self.rows(*((label, line) for line in text.splitlines()))
            return
        self._console.print()
        self._console.print(Text(text))

    def table(self, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Print a table with a heading; in a pipe the rows alone, separated by tabs."""
        if not self._console.is_terminal:
            for row in rows:
                self._line(*row)
            return
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def _line(self, *values: str) -> None:
        click.echo("\t".join(" ".join(value.split()) for value in values), err=self._err)


def echo_json(value: Any) -> None:
    """Print JSON to standard output, in ASCII if its encoding is not UTF-8."""
    encoding = "utf-8" if sys.stdout is None else codecs.lookup(sys.stdout.encoding).name
    click.echo(json_text(value, ascii_only=encoding != "utf-8"))


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """Return indented JSON, without NaN."""
    return json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False)
