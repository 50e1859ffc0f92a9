"""Ctrl-C, and SIGTERM as the same, that never fall into the middle of a write."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

__all__ = ["Interruption", "Interruptions"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(KeyboardInterrupt):
    """Somebody wants an end; `status` is the exit status that tells so: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class Interruptions:
    """While its context lasts, the signals raise `Interruption`; inside `held` only at the end of it."""

    def __init__(self) -> None:
        self._holding = False
        self._waiting: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Outside the main thread there are no signals to handle.
        with contextlib.suppress(ValueError):
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What is done here is done whole."""
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
