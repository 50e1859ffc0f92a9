"""A command that runs beside a server: signals are forwarded to it, and it is terminated when the server ends.

So is what it has started; also where whoever started it is killed, and with it the server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from attune_ensemble.janitor import Janitor

__all__ = ["ServerGone", "run_beside"]

_POLL_S = 0.1
_GRACE_S = 10.0
"""Grace period of the command after SIGTERM, in seconds."""

_MARK = "ATTUNE_BESIDE"
"""Environment variable by which the janitor finds the command, and what it has started."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerGone(Exception):
    """The server ended before the command; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_beside(command: Sequence[str], environment: Mapping[str, str], server_code: Callable[[], int | None]) -> int:
    """Run a command to its end and return its exit status, 128 plus the signal's number if a signal ended it.

    Args:
        command: the program and its arguments.
        environment: its environment variables.
        server_code: the server's exit code, None as long as it runs.

    Raises:
        ServerGone: the server ended first; the command was terminated.
        OSError: the command cannot be started.
    """
    with Janitor(_MARK, secrets.token_hex(8), grace_s=_GRACE_S) as janitor:
        companion = _Companion(subprocess.Popen(command, env={**environment, **janitor.environment}))
        with companion.signals():
            try:
                status = companion.wait(server_code)
                if not companion.is_terminated:
                    janitor.dismiss()  # what it has left in the background is meant to stay
                return status
            finally:
                janitor.finish()
                companion.end()


class _Companion:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._deadline_s: float | None = None

    def wait(self, server_code: Callable[[], int | None]) -> int:
        while (status := self._poll()) is None:
            if (code := server_code()) is not None:
                raise ServerGone(code)
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                self._process.kill()
        if (code := server_code()) is not None:
            raise ServerGone(code)
        return 128 - status if status < 0 else status

    @property
    def is_terminated(self) -> bool:
        """Whether it was told to end."""
        return self._deadline_s is not None

    def _poll(self) -> int | None:
        try:
            return self._process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Terminate it, and kill it after the grace period; does nothing if it has ended."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Forward the signals of this process, except those that are ignored, as with nohup."""
        forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._forward) for number in forwarded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _in_foreground():
            return  # Ctrl-C: the terminal sends it to the command as well
        self._process.send_signal(number)
        if number != signal.SIGINT and self._deadline_s is None:
            self._deadline_s = time.monotonic() + _GRACE_S


def _in_foreground() -> bool:
    """Return whether a terminal sends its signals to this process group, and so to the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
