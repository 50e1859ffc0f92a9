"""A command that runs beside a server: it gets our signals, and ends when the server does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

__all__ = ["ServerGone", "run_beside"]

_POLL_S = 0.1
_GRACE_S = 10.0
"""How long the command may take to end after it was told to."""

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerGone(Exception):
    """The server ended first; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_beside(command: Sequence[str], environment: Mapping[str, str], server_code: Callable[[], int | None]) -> int:
    """Run a command to its end and return its exit status, 128 and the signal's number if a signal ended it.

    Args:
        command: the program and its arguments.
        environment: what it finds in its environment.
        server_code: the server's exit code, None as long as it runs.

    Raises:
        ServerGone: the server ended first; the command was ended, too.
        OSError: the command cannot be started.
    """
    companion = _Companion(subprocess.Popen(command, env=environment))
    with companion.signals():
        try:
            return companion.wait(server_code)
        finally:
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

    def _poll(self) -> int | None:
        try:
            return self._process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ask it to end, then make it end; does nothing if it has."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Pass on what we are sent, but for what somebody chose to ignore, as nohup does."""
        heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _in_foreground():
            return  # Ctrl-C: the terminal has sent it to the command as well
        self._process.send_signal(number)
        if number != signal.SIGINT and self._deadline_s is None:
            self._deadline_s = time.monotonic() + _GRACE_S


def _in_foreground() -> bool:
    """Whether a terminal sends its signals to us, and so to the command, which is in our process group."""
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
