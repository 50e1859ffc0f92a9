"""Ctrl-C, SIGTERM and SIGHUP: a command ends soon after the first of them, and never in the middle of a write.

Imports the standard library only, since it has to be there before anything else is imported.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

__all__ = ["END_S", "Interrupted", "Interruption", "Interruptions", "leave_on_signals", "usual_signals"]

END_S = 0.8
"""How long a command may take to end in order after a signal, in seconds, unless it says otherwise."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STDERR = 2
_CLEAR_LINE = b"\r\x1b[K\x1b[?25h"
"""Clears what shows that something is under way, and shows the cursor that it hid."""


class Interruption(KeyboardInterrupt):
    """A request to terminate; `status` is the exit status by convention: 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class Interrupted(SystemExit):
    """A command has ended in order after an `Interruption`: nothing of the interpreter's end need be waited for."""


def leave_on_signals() -> None:
    """From now on a signal ends the process at once and quietly; for as long as there is nothing to tidy.

    What is ignored stays so: nohup ignores SIGHUP, and a shell SIGINT of what it runs in the background.
    """
    for number in _heeded():
        signal.signal(number, _leave)


def usual_signals() -> None:
    """Undo `leave_on_signals`, for a command that handles signals itself."""
    for number in _heeded():
        if signal.getsignal(number) is _leave:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _heeded() -> list[signal.Signals]:
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _leave(number: int, frame: FrameType | None = None) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(_STDERR, (_CLEAR_LINE if os.isatty(_STDERR) else b"") + b"interrupted\n")
    os._exit(128 + number)


class Interruptions:
    """A context in which the first signal raises `Interruption`; inside `held` it is deferred to its end.

    Later signals are ignored: `timeout` sends two, and an impatient person more, and they must not tear apart what the
    first began. A process that has not left the context `end_s` after the first signal is ended as it is.
    """

    def __init__(self, end_s: float = END_S) -> None:
        self._end_s = end_s
        self._holding = False
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        # A signal may arrive while any lock is held; this queue can be put into all the same.
        self._news: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        threading.Thread(target=self._end_in_time, name="interruptions", daemon=True).start()
        # Signals can be handled in the main thread only.
        with contextlib.suppress(ValueError):
            self._before = {number: signal.signal(number, self._arrived) for number in _heeded()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # The command has ended, and has said so.
            over = self._number is not None and handler is _leave
            signal.signal(number, signal.SIG_IGN if over else handler)
        self._news.put(None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer a signal while the block runs; one that has come before it is raised after it, too."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._number is not None:
            raise Interruption(self._number)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            return
        self._number = number
        self._news.put(number)
        if not self._holding:
            raise Interruption(number)

    def _end_in_time(self) -> None:
        number = self._news.get()
        if number is None:
            return
        try:
            self._news.get(timeout=self._end_s)
        except queue.Empty:
            _leave(number)
