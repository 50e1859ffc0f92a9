"""Handling of Ctrl-C and SIGTERM that never interrupts a write."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

__all__ = ["Interruption", "Interruptions"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(KeyboardInterrupt):
    """A request to terminate; `status` is the exit status by convention: 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class Interruptions:
    """A context in which the signals raise `Interruption`; inside `held` they are deferred to its end."""

    def __init__(self) -> None:
        self._holding = False
        self._waiting: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Signals can be handled in the main thread only.
        with contextlib.suppress(ValueError):
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer the signals while the block runs."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self._raise_waiting()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self._waiting = number
        if not self._holding:
            self._raise_waiting()

    def _raise_waiting(self) -> None:
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise Interruption(number)
