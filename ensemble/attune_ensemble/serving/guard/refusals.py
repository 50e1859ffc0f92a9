"""What the operator is told of requests for which there was no place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

__all__ = ["Refusals", "Tell"]

Tell = Callable[..., None]
"""Takes an event's name, and its fields by name."""

_EVERY_S = 1.0


class Refusals:
    """Tells of the refusals of a second together: one event `refused` for each model, with their number."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}

    def add(self, model: str, reason: str) -> None:
        """Put one down."""
        if not self._counts:
            asyncio.get_running_loop().call_later(_EVERY_S, self._tell_all)
        self._counts[model] += 1
        self._reasons[model] = reason

    def _tell_all(self) -> None:
        counts, self._counts = self._counts, Counter()
        for model, count in counts.items():
            self._tell("refused", model=model, count=count, reason=self._reasons.pop(model))
