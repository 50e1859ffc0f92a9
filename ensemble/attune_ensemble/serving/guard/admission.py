"""Admission: how many requests may be in flight at each model, and how many of them of one client.

The models bound what they work at and what waits (`places`); this bounds what reaches them at all, so that a refusal
costs nothing, and keeps a part of the places for clients that have none. It refuses, too, what could not be answered
before its deadline: work that nobody waits for any more is what makes an overloaded server slow.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from attune_client.protocol.errors import ServerBusy
from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import Signature

__all__ = ["Admission", "Place"]

_MEMORY = 0.8
_KNOWN_AFTER = 3
_LONGEST_HINT_S = 60


class Admission:
    """Counts requests in flight, all on one event loop."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._models: dict[str, _Model] = {}
        self._large = 0

    def slots(self, model: Signature) -> int:
        """How many requests a model works at at once."""
        return model.at_work or self._settings.places

    def check(self, model: Signature, client: str, size: int, left_s: float | None = None) -> None:
        """Raise `ServerBusy` where there is no place for a request, as far as so little says of it."""
        state = self._state_of(model)
        state.check(client, left_s)
        if size > self._settings.large_bytes and self._large >= self._settings.large_places:
            raise ServerBusy(f"{self._large} recordings as large as this one are at work", state.retry_after_s)

    def _state_of(self, model: Signature) -> _Model:
        return self._models.setdefault(model.name, _Model(model, self._settings))

    @contextmanager
    def place(self, model: Signature, client: str, size: int, left_s: float | None) -> Iterator[Place]:
        """A place for a request of `size` bytes, as long as the context lasts; `left_s` until its deadline.

        Raises:
            ServerBusy: there is none for it; says when to try again.
        """
        self.check(model, client, size, left_s)
        state, is_large = self._state_of(model), size > self._settings.large_bytes
        self._large += is_large
        state.enter(client)
        place = Place(time.monotonic())
        try:
            yield place
        finally:
            state.leave(client, place)
            self._large -= is_large


@dataclass(slots=True)
class Place:
    """The place of one request, since when it has it, and whether it was answered: estimates are made of those."""

    since_s: float
    is_answered: bool = False


class _Model:
    def __init__(self, model: Signature, settings: GuardSettings) -> None:
        self._name = model.name
        self._most = (model.at_work or settings.places) + model.waiting
        self._share = max(1, math.ceil(self._most * settings.client_share))
        self._clients: Counter[str] = Counter()
        self._has_deadlines = not model.decoupled  # how long a stream lasts is its listener's choice
        self._answered = 0
        self._interval_s = 0.0
        self._last_end_s = 0.0
        self.count = 0

    @property
    def retry_after_s(self) -> int:
        """When a place is likely to be free, in seconds."""
        return min(max(1, math.ceil(self._interval_s)), _LONGEST_HINT_S)

    def check(self, client: str, left_s: float | None) -> None:
        if self.count >= self._most:
            raise ServerBusy(f"{self._name} has {self.count} requests in flight", self.retry_after_s)
        if self._clients[client] >= self._share:
            raise ServerBusy(
                f"this client has {self._clients[client]} requests in flight at {self._name}; the other places are for "
                "others",
                self.retry_after_s,
            )
        if left_s is not None and left_s < self._expected_s():
            raise ServerBusy(
                f"{self._name} has {self.count} requests in flight, too many to answer within {left_s:.3g} s",
                self.retry_after_s,
            )

    def _expected_s(self) -> float:
        """How long a request that comes now is likely to last; 0 where nothing is known."""
        if not self._has_deadlines or self._answered < _KNOWN_AFTER or not self.count:
            return 0.0
        return (self.count + 1) * self._interval_s

    def enter(self, client: str) -> None:
        self.count += 1
        self._clients[client] += 1

    def leave(self, client: str, place: Place) -> None:
        if place.is_answered:
            # One behind the other, each takes from the end of the one before it, or from its own beginning.
            now_s = time.monotonic()
            interval_s = now_s - max(self._last_end_s, place.since_s)
            self._last_end_s = now_s
            self._answered += 1
            memory = _MEMORY if self._answered > 1 else 0.0
            self._interval_s = memory * self._interval_s + (1 - memory) * interval_s
        self.count -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
