"""Error reporting of the commands: one line for any failure, and a traceback only on request.

    with one_line_errors(debug=False):
        ...

Imports only click and what the standard library is enough for, because it wraps the sub-commands of every package,
whichever extras are installed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

import click

from attune_client.interruption import Interrupted, Interruption

__all__ = ["DEBUG_VARIABLE", "INTERRUPTED", "describe", "one_line_errors"]

DEBUG_VARIABLE = "ATTUNE_DEBUG"
"""Environment variable; set to 1, errors show their traceback, as with `attune --debug`."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, by the shells' convention: 128 plus the signal's number."""

_OUR_ERRORS = "attune_client.protocol.errors"


@contextlib.contextmanager
def one_line_errors(*, debug: bool) -> Iterator[None]:
    """Convert exceptions raised inside to one line on standard error and an exit status.

    Ctrl-C exits with 130, a closed standard output with 1 and without a message. The traceback of an unexpected error
    is kept in a file. With `debug` every traceback is shown.
    """
    _escape_unencodable(sys.stdout)
    _escape_unencodable(sys.stderr)
    try:
        yield
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except Interruption as interruption:
        click.echo("interrupted", err=True)
        raise Interrupted(interruption.status) from None
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if debug or _is_closed_pipe(error):
            raise  # click exits silently for a closed pipe
        _fail(error)


def describe(error: BaseException) -> str:
    """Describe an error for the user; an error of a file names the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{click.format_filename(error.filename)}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _fail(error: Exception) -> NoReturn:
    if _is_expected(error):
        _drop_unwritable_output()
        raise click.ClickException(describe(error)) from None
    path = _keep_traceback(error)
    if path is None:
        raise error
    raise click.ClickException(
        f"unforeseen {type(error).__name__}: {' '.join(str(error).split())[:300]}\n"
        f"Please report it, with its traceback: {path}"
    ) from None


def _is_expected(error: Exception) -> bool:
    """Return whether an error is expected: `AttuneError`, errors of files, and of text in another encoding."""
    # If one was raised, its module is loaded already; without numpy it cannot be imported.
    ours = getattr(sys.modules.get(_OUR_ERRORS), "AttuneError", ())
    return isinstance(error, (OSError, UnicodeError, ours))


def _is_closed_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _keep_traceback(error: Exception) -> Path | None:
    """Write the traceback to a file and return its path; None if no file can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="attune-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return Path(file.name)


def _escape_unencodable(stream: IO[str]) -> None:
    """Escape characters that a terminal or pipe cannot encode, instead of failing."""
    with contextlib.suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]


def _drop_unwritable_output() -> None:
    """Discard unwritten output, whose flush would fail again at the interpreter's exit, as on a full disk."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
