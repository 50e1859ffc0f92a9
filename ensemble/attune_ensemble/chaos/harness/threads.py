"""Calls in threads of this process, over one connection: several at once, or a load that goes on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from attune_client.client import AttuneClient
from attune_ensemble.chaos.harness.calls import Call, Ended, Outcome, attempt

__all__ = ["MARGIN_S", "Load", "Started", "at_once", "open_loop"]

MARGIN_S = 10.0
"""How much longer than its patience a call may take to say that it ended, on a machine that is busy."""

_POLL_S = 0.05

Tell = Callable[[Ended], None]


def _nobody(ended: Ended) -> None:
    """What is told of a call where nobody wants to know."""


class _Running:
    """One call in a thread, and when its server was last heard."""

    def __init__(self, call: Call, client: AttuneClient, tell: Tell) -> None:
        self._call, self._client, self._tell = call, client, tell
        self._started_s = self._heard_s = time.monotonic()
        self._lock = threading.Lock()
        self._told = False
        # A daemon: a call that never ends must not keep the program alive.
        threading.Thread(target=self._run, name=f"chaos-{call.name}", daemon=True).start()

    @property
    def told(self) -> bool:
        return self._told

    def _run(self) -> None:
        self._end(attempt(self._call, self._client, self._hear))

    def _hear(self) -> None:
        self._heard_s = time.monotonic()

    def _end(self, ended: Ended) -> None:
        with self._lock:
            if not self._told:
                self._tell(ended)
                self._told = True

    def give_up_after(self, patience_s: float) -> None:
        """Take it for hung if the server was not heard for so long, and a margin."""
        if time.monotonic() - self._heard_s > patience_s + MARGIN_S:
            lasted_s = time.monotonic() - self._started_s
            message = "the client itself did not come back"
            self._end(Ended(self._call.name, Outcome.HUNG, self._started_s, lasted_s, message=message))


class Started:
    """Calls that have begun at once, each in a thread.

    Args:
        calls: what is asked.
        client: its `timeout_s` must be `patience_s`.
        patience_s: how long a call may hear nothing until it counts as hung.
        tell: is told of each call as soon as it has ended.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        client: AttuneClient,
        patience_s: float,
        tell: Tell = _nobody,
    ) -> None:
        self._patience_s, self._tell = patience_s, tell
        self.ended: list[Ended] = []
        self._running = [_Running(call, client, self._put_down) for call in calls]

    def _put_down(self, ended: Ended) -> None:
        self.ended.append(ended)
        self._tell(ended)

    def wait(self) -> list[Ended]:
        """Wait until all have ended, or were silent for too long: how they did, in that order."""
        _await(self._running, self._patience_s)
        return list(self.ended)


def at_once(calls: Sequence[Call], client: AttuneClient, patience_s: float, tell: Tell = _nobody) -> list[Ended]:
    """Make all calls at once, and wait for them; see `Started`."""
    return Started(calls, client, patience_s, tell).wait()


def open_loop(
    calls: Sequence[Call],
    client: AttuneClient,
    patience_s: float,
    *,
    rate_hz: float,
    seconds: float,
    tell: Tell = _nobody,
) -> list[Ended]:
    """Make calls at a fixed rate, whether those before are answered or not; how they ended, when all have.

    Args:
        calls: what is asked, one after the other, again and again.
        client: its `timeout_s` must be `patience_s`.
        patience_s: how long a call may hear nothing until it counts as hung.
        rate_hz: calls that begin in a second.
        seconds: for how long calls begin.
        tell: is told of each call as soon as it has ended.
    """
    ended: list[Ended] = []

    def put_down(one: Ended) -> None:
        ended.append(one)
        tell(one)

    running, started_s = [], time.monotonic()
    for number in range(int(rate_hz * seconds)):
        time.sleep(max(0.0, started_s + number / rate_hz - time.monotonic()))
        running.append(_Running(calls[number % len(calls)], client, put_down))
    _await(running, patience_s)
    return list(ended)


def _await(running: Sequence[_Running], patience_s: float) -> None:
    while not all(one.told for one in running):
        time.sleep(_POLL_S)
        for one in running:
            one.give_up_after(patience_s)


class Load:
    """Threads that go on asking while the `with` block lasts; every call is told to `tell`.

    Args:
        calls: each thread goes round them, beginning at another one.
        client: its `timeout_s` must be `patience_s`.
        patience_s: how long a call may hear nothing until it counts as hung.
        tell: takes each call that has ended; called from several threads.
        threads: how many ask at a time (a closed loop).
    """

    def __init__(
        self,
        calls: Sequence[Call],
        client: AttuneClient,
        patience_s: float,
        tell: Tell,
        threads: int = 4,
    ) -> None:
        self._calls, self._client, self._patience_s, self._tell = calls, client, patience_s, tell
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(first,), daemon=True) for first in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, first: int) -> None:
        for call in itertools.islice(itertools.cycle(self._calls), first, None):
            if self._over.is_set():
                return
            [ended] = at_once([call], self._client, self._patience_s, self._tell)
            if ended.outcome != Outcome.ANSWERED:
                # Whoever is refused does not ask again at once; a loop without a pause would be an attack.
                self._over.wait(0.2)
