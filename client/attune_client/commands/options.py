"""Options that several sub-commands share, and the types of their values: checked before anything is sent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from attune_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL
from attune_client.protocol.bounds import MAX_AUDIO_BYTES, MAX_TIMEOUT_S
from attune_client.protocol.models import OtherLanguages

__all__ = [
    "AUDIO_FILE",
    "AUDIO_NAME",
    "STDIN",
    "JsonObject",
    "Numbers",
    "RealRange",
    "Words",
    "audio_name",
    "json_option",
    "other_languages_option",
    "read_audio",
    "server_options",
]

STDIN = Path("-")
"""A recording that is read from standard input."""

AUDIO_NAME = click.Path(allow_dash=True, path_type=Path)
"""A recording among several, of which one may be missing."""

AUDIO_FILE = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True, path_type=Path)


class RealRange(click.FloatRange):
    """A range of numbers that has no room for nan, which no comparison ever excludes, nor for infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails for one that is not finite or lies outside the range."""
        number: float = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return super().convert(number, param, ctx)


class Words(click.ParamType):
    """Text that can be sent: not empty, and with a form in UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        text = str(value)
        if not text.strip():
            self.fail("it is empty", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("it is not UTF-8 text", param, ctx)
        return text


class Numbers(click.ParamType):
    """Several numbers with commas between, each within the same range."""

    name = "numbers"

    def __init__(self, names: tuple[str, ...], least: float, most: float) -> None:
        self._names = names
        self._range = RealRange(least, most)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Such as V,A,D."""
        return ",".join(self._names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """As many numbers as there are names."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != len(self._names):
            self.fail(f"{value!r} is not {len(self._names)} numbers with commas between", param, ctx)
        return tuple(self._range.convert(part.strip(), param, ctx) for part in parts)


class JsonObject(click.ParamType):
    """A JSON file whose content is an object; `-` is standard input."""

    name = "file"
    _file = click.File("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The object."""
        if isinstance(value, dict):
            return value
        try:
            content = json.loads(self._file.convert(value, param, ctx).read())
        except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors alike
            self.fail(f"{click.format_filename(value)} is not JSON: {error}", param, ctx)
        if not isinstance(content, dict):
            self.fail(f"{click.format_filename(value)} holds no JSON object", param, ctx)
        return content


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--url` and `--timeout`."""
    command = click.option(
        "--timeout",
        "timeout_s",
        type=RealRange(min=0, min_open=True, max=MAX_TIMEOUT_S),
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        help="Longest wait for an answer, in seconds.",
    )(command)
    return click.option(
        "--url",
        envvar="ATTUNE_URL",
        type=Words(),
        default=DEFAULT_URL,
        show_default=True,
        help="The server's gRPC address.",
    )(command)


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--json`: every command that prints results has it."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text.")(command)


def other_languages_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--other-languages`: every command that takes recordings has it."""
    return click.option(
        "--other-languages",
        type=click.Choice([choice.value for choice in OtherLanguages]),
        help="Speech that is not English: refuse it (if left out), or use the voice without the words.",
    )(command)


def read_audio(path: Path) -> bytes | Path:
    """What a client takes: the bytes that standard input holds, or the path."""
    if path != STDIN:
        return path
    if sys.stdin is None:
        raise click.UsageError("there is no standard input")
    return sys.stdin.buffer.read(MAX_AUDIO_BYTES + 1)  # the client refuses that, and memory is not filled without end


def audio_name(path: Path) -> str:
    """The recording for people: a name that is not UTF-8 can be shown, too."""
    return "standard input" if path == STDIN else click.format_filename(path)
