"""Clients in processes of their own, each with a connection of its own: so that they can vanish.

Where they are `apart` each comes from an address of its own, by which they count as several.

with Swarm(url, [[Play(seconds=60)] * 5] * 10, patience_s=30) as swarm:
    swarm.wait_until_heard(50, within_s=60)
    swarm.kill()
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from attune_client.client import AttuneClient
from attune_ensemble.chaos.harness.calls import Call, Ended, Outcome
from attune_ensemble.chaos.harness.relay import relayed
from attune_ensemble.chaos.harness.threads import MARGIN_S, at_once

__all__ = ["Swarm"]

# Its children begin with everything imported, and without a thread or a connection of this process.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])

_POLL_S = 0.2
_FIRST_ADDRESS = 10


@dataclass(frozen=True, slots=True)
class _Watched:
    """A call that says when the server was first heard."""

    call: Call
    tell: Callable[[], None]

    @property
    def name(self) -> str:
        return self.call.name

    def __call__(self, client: AttuneClient, heard: Callable[[], None]) -> None:
        is_first = True

        def hear() -> None:
            nonlocal is_first
            if is_first:
                self.tell()
            is_first = False
            heard()

        self.call(client, hear)


def _live(url: str, source: str | None, calls: Sequence[Call], patience_s: float, told: Connection) -> None:
    """One client: all its calls at once, over one connection. Tells None for each that is heard, and each end."""
    lock = threading.Lock()

    def tell(what: Ended | None) -> None:
        with lock:
            told.send(what)

    with relayed(url, source) as near, AttuneClient(near, timeout_s=patience_s) as client:
        at_once([_Watched(call, partial(tell, None)) for call in calls], client, patience_s, tell)


class Swarm:
    """Processes that begin to ask when the `with` block is entered, and that are ended when it is left.

    Args:
        url: the server's gRPC address.
        clients: the calls of each client, which makes all of them at once.
        patience_s: how long a call may hear nothing until it counts as hung.
        tell: takes each call that has ended, when it is read (`wait_until_heard`, `wait`).
        apart: each client comes from another address of the loopback interface.
    """

    def __init__(
        self,
        url: str,
        clients: Sequence[Sequence[Call]],
        patience_s: float,
        tell: Callable[[Ended], None] = lambda _: None,
        *,
        apart: bool = False,
    ) -> None:
        self._url, self._clients, self._patience_s, self._tell = url, clients, patience_s, tell
        self._apart = apart
        self._processes: list[BaseProcess] = []
        self._open: list[Connection] = []
        self.heard = 0
        self.ended: list[Ended] = []

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        for number, calls in enumerate(self._clients, start=_FIRST_ADDRESS):
            mine, its = _CONTEXT.Pipe(duplex=False)
            source = f"127.0.0.{number}" if self._apart else None
            process = _CONTEXT.Process(
                target=_live, args=(self._url, source, calls, self._patience_s, its), daemon=True
            )
            process.start()
            its.close()  # the child has it: now its death can be seen
            self._processes.append(process)
            self._open.append(mine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def expected(self) -> int:
        """How many calls there are in all."""
        return sum(len(calls) for calls in self._clients)

    def kill(self) -> None:
        """End every client by SIGKILL; what they have not told is not known any more."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def wait_until_heard(self, calls: int, within_s: float) -> int:
        """Wait until so many calls have heard the server, or all have ended, or the time is over; how many did."""
        until_s = time.monotonic() + within_s
        while self._open and self.heard < calls and len(self.ended) < self.expected and time.monotonic() < until_s:
            self._read()
        return self.heard

    def wait(self, within_s: float) -> list[Ended]:
        """Wait for the end of all calls; those that have told nothing of it in time, or whose client died, are hung."""
        until_s = time.monotonic() + within_s + MARGIN_S
        while self._open and len(self.ended) < self.expected and time.monotonic() < until_s:
            self._read()
        for _ in range(self.expected - len(self.ended)):
            lasted_s = time.monotonic() - self._started_s
            self._put_down(Ended("a call", Outcome.HUNG, self._started_s, lasted_s, message="its client told nothing"))
        return list(self.ended)

    def _read(self) -> None:
        for connection in wait(self._open, _POLL_S):
            assert isinstance(connection, Connection)
            try:
                told = connection.recv()
            except EOFError:
                connection.close()
                self._open.remove(connection)
                continue
            if told is None:
                self.heard += 1
            else:
                self._put_down(told)

    def _put_down(self, ended: Ended) -> None:
        self.ended.append(ended)
        self._tell(ended)
