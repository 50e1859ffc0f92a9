"""A limit on waits of a thread that cannot itself limit them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Alarm"]


class Alarm:
    """Calls `ring`, once and from another thread, when a wait takes longer than it may; `rang` tells so.

    A stream waits thousands of times, nearly always for a moment. So no wait ends the timer of the one before it: a
    timer that runs down in a later wait begins again with what is left of that.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._due_s: float | None = None  # when the present wait is over
        self._timer: threading.Timer | None = None
        self._timer_s = 0.0  # when the timer runs down
        self.rang = False

    @contextmanager
    def within(self, wait_s: float) -> Iterator[None]:
        """Limit what is done inside to so many seconds."""
        with self._lock:
            self._due_s = time.monotonic() + wait_s
            if self._timer is None or self._timer_s > self._due_s:
                self._begin(self._due_s)
        try:
            yield
        finally:
            self._due_s = None

    def stop(self) -> None:
        """Ring no more."""
        with self._lock:
            self._due_s = None
            if self._timer is not None:
                self._timer.cancel()

    def _begin(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = threading.Timer(due_s - time.monotonic(), self._run_down)
        self._timer.daemon = True
        self._timer.start()

    def _run_down(self) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return
            self._timer = None
            due_s = self._due_s
            if due_s is None:
                return
            if due_s > time.monotonic():
                self._begin(due_s)
                return
            self.rang = True
        self._ring()
