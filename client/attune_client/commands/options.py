"""Options shared by several sub-commands, and the types of their values, validated before anything is sent."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from attune_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL
from attune_client.help_lines import country_of_locale
from attune_client.protocol.bounds import MAX_AUDIO_BYTES, MAX_DEADLINE_S, MAX_TIMEOUT_S
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
    "country_option",
    "deadline_option",
    "json_option",
    "other_languages_option",
    "read_audio",
    "server_options",
]

STDIN = Path("-")
"""Path that denotes standard input."""

AUDIO_NAME = click.Path(allow_dash=True, path_type=Path)
"""Option type of a recording among several, which need not exist."""

AUDIO_FILE = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True, path_type=Path)


class RealRange(click.FloatRange):
    """A range of finite numbers; click's own accepts nan, which no comparison excludes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert to a number; fails if it is not finite or outside the range."""
        number: float = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return super().convert(number, param, ctx)


class Words(click.ParamType):
    """Text that can be sent: not empty, and encodable in UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged."""
        text = str(value)
        if not text.strip():
            self.fail("it is empty", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("it is not UTF-8 text", param, ctx)
        return text


class Numbers(click.ParamType):
    """Several numbers separated by commas, each within the same range."""

    name = "numbers"

    def __init__(self, names: tuple[str, ...], least: float, most: float) -> None:
        self._names = names
        self._range = RealRange(least, most)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names, such as V,A,D."""
        return ",".join(self._names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Convert to as many numbers as there are names."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != len(self._names):
            self.fail(f"{value!r} is not {len(self._names)} numbers with commas between", param, ctx)
        return tuple(self._range.convert(part.strip(), param, ctx) for part in parts)


class Country(click.ParamType):
    """A country's code, of two letters; whether there are help lines for it does not matter."""

    name = "country"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the form of the value."""
        return "CC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the code in capital letters."""
        code = str(value).strip().upper()
        if len(code) != 2 or not (code.isascii() and code.isalpha()):
            self.fail(f"{value!r} is not a country code of two letters, such as GB", param, ctx)
        return code


class JsonObject(click.ParamType):
    """A JSON file whose content is an object; `-` is standard input."""

    name = "file"
    _file = click.File("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Read the object."""
        if isinstance(value, dict):
            return value
        try:
            content = json.loads(self._file.convert(value, param, ctx).read())
        except (ValueError, RecursionError) as error:  # errors of JSON and of Unicode
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
        default=None,
        show_default=f"until --deadline, or {DEFAULT_TIMEOUT_S:g} without one",
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


def deadline_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--deadline`, for every command that sends requests."""
    return click.option(
        "--deadline",
        "deadline_s",
        type=RealRange(min=0, min_open=True, max=MAX_DEADLINE_S),
        help="Give up after so many seconds, the server too; for each recording.",
    )(command)


def country_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--country`, for every command that may show where to find help."""
    return click.option(
        "--country",
        envvar="ATTUNE_COUNTRY",
        type=Country(),
        default=lambda: country_of_locale(os.environ),
        show_default="the locale's",
        help="Where words speak of a crisis, show help lines of this country (two letters).",
    )(command)


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--json`, for every command that prints results."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text.")(command)


def other_languages_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--other-languages`, for every command that takes recordings."""
    return click.option(
        "--other-languages",
        type=click.Choice([choice.value for choice in OtherLanguages]),
        help="Speech that is not English: refuse it (if left out), or use the voice without the words.",
    )(command)


def read_audio(path: Path) -> bytes | Path:
    """Return the argument for a client: the bytes of standard input, or the path."""
    if path != STDIN:
        return path
    if sys.stdin is None:
        raise click.UsageError("there is no standard input")
    return sys.stdin.buffer.read(MAX_AUDIO_BYTES + 1)  # the client rejects one byte too many, and memory stays bounded


def audio_name(path: Path) -> str:
    """Return the recording's name for messages; names that are not UTF-8 are escaped."""
    return "standard input" if path == STDIN else click.format_filename(path)
