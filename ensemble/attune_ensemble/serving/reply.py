"""The answer to a request while it is not complete: where it goes, until when, and whether anybody still waits for it.

Triton tells a model that a client has cancelled, vanished or come to its deadline only when the model asks. So one
thread of each model asks for all of its requests (`Watch`), and whoever waits on behalf of one is told.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from attune_client.protocol.errors import RequestCancelled
from attune_ensemble.call import CallContext
from attune_ensemble.serving.lease import LeaseReader

__all__ = ["POLL_S", "Reply", "Watch"]

POLL_S = 0.2
"""How often it is asked: what is abandoned ends within a second, through two models one behind the other."""

_PATIENCE_S = 0.4
"""How long the work for an abandoned request may take to see it before the request is answered without it."""


class Reply:
    """The answer to one request, by Triton's response sender; `final` is its flag for the last response.

    `context` is what those who work for it are handed. Nobody waits for the answer any more when the client has gone,
    when the lease has ended, or when the deadline has passed. `log` takes a line when one who is to be told fails.

    An answer in parts has a sender for each: between `end_part` and `go_on_as` there is none, and nothing is sent.
    `parts_for` is the lease of a caller who takes the answer in parts, None for one who takes it whole.
    """

    def __init__(
        self, sender: Any, final: int, request_id: str = "", log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._sender: Any | None = sender
        self._final = final
        self._is_complete = False
        self._log = log
        self._lease: LeaseReader | None = None
        self.parts_for: str | None = None
        self.context = CallContext(is_cancelled=lambda: self._abandoned, request_id=request_id, on_cancel=self._telling)
        self._lock = threading.Lock()  # Triton must not be asked about a request that is complete
        self._abandoned = False
        self._overdue_s = math.inf
        self._listeners: list[Callable[[], None]] = []

    def depend_on(self, lease: str) -> None:
        """Nobody waits any more when this lease ends; InvalidOption if it is no token of ours."""
        self._lease = LeaseReader(lease)

    def limit(self, deadline_s: float) -> None:
        """Nobody waits any more when so many seconds have passed."""
        self.context = replace(self.context, deadline=time.monotonic() + deadline_s)

    def look(self) -> None:
        """Ask whether anybody still waits; when nobody does for the first time, tell everyone who wants to know."""
        with self._lock:
            if self._is_complete or self._abandoned or self._is_wanted():
                return
            self._abandoned = True
            self._overdue_s = time.monotonic() + _PATIENCE_S
            listeners, self._listeners = self._listeners, []
        for tell in listeners:
            try:
                tell()
            except BaseException as error:  # the others must hear of it all the same
                self._log(f"one that works for an abandoned request could not be told: {error!r}")

    @property
    def is_overdue(self) -> bool:
        """Whether nobody has waited for it for a while, and it is not complete: whoever works for it does not look."""
        return not self._is_complete and time.monotonic() > self._overdue_s

    def _is_wanted(self) -> bool:
        if self.context.left_s() == 0.0 or (self._sender is not None and self._sender.is_cancelled()):
            return False
        return self._lease is None or self._lease.is_held()

    def taken(self) -> int | None:
        """How many responses the holder of the lease has taken in all; None where nobody says so."""
        with self._lock:
            return None if self._lease is None or self._is_complete else self._lease.taken()

    def when_abandoned(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, as soon as nobody waits any more: at once if that is so already; never once answered."""
        with self._lock:
            if not self._abandoned:
                if not self._is_complete:
                    self._listeners.append(tell)
                return
        tell()

    @contextmanager
    def _telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """`when_abandoned`, but only while the context lasts."""
        self.when_abandoned(tell)
        try:
            yield
        finally:
            with self._lock:
                if tell in self._listeners:
                    self._listeners.remove(tell)

    def send(self, response: Any) -> None:
        """Send a response that is not the last one; after the last one, raises what `CallContext.check` raises."""
        with self._lock:
            if self._sender is not None:
                self._sender.send(response)
                return
        self.context.check()

    def end_part(self, response: Any) -> None:
        """Send the last response of a part that is not the last; for the thread that sends."""
        with self._lock:
            sender = self._let_go()
        self._send_last(sender, response)

    def go_on_as(self, request: Reply) -> None:
        """Send the next part as the answer to that request, which is nobody else's any more.

        Raises `RequestCancelled` where this answer is complete.
        """
        with self._lock:
            if self._is_complete:
                raise RequestCancelled("the stream has ended")
            self._sender = request._hand_over()

    def _hand_over(self) -> Any | None:
        with self._lock:
            self._is_complete = True
            return self._let_go()

    def finish(self, response: Any = None) -> None:
        """Send the last response, or none, and that nothing follows; only the first call does anything."""
        with self._lock:
            sender, self._is_complete = self._let_go(), True
            self._listeners.clear()
            if self._lease is not None:
                self._lease.close()
        self._send_last(sender, response)

    def _let_go(self) -> Any | None:
        """The sender, which is held no more: as long as anything holds it, Triton counts the request as in flight."""
        sender, self._sender = self._sender, None
        return sender

    def _send_last(self, sender: Any | None, response: Any) -> None:
        if sender is None:
            return
        if response is None:
            sender.send(flags=self._final)
        else:
            sender.send(response, flags=self._final)


class Watch:
    """Looks after every reply that it is given, `POLL_S` after `POLL_S`, in one thread, until it is closed.

    `end` is called with a reply that is overdue, for work that blocks keeps nobody waiting. `log` takes a line when a
    look fails; the others go on.
    """

    def __init__(self, name: str, end: Callable[[Reply], None], log: Callable[[str], None]) -> None:
        self._end, self._log = end, log
        self._replies: set[Reply] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-watch", daemon=True)
        self._thread.start()

    def add(self, reply: Reply) -> None:
        """Look after a reply from now on."""
        with self._changed:
            self._replies.add(reply)
            self._changed.notify_all()

    def remove(self, reply: Reply) -> None:
        """Forget a reply."""
        with self._changed:
            self._replies.discard(reply)

    def close(self) -> None:
        """Look after nothing any more; returns when the thread has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._replies or self._closed)
                if self._closed:
                    return
            self._look()
            time.sleep(POLL_S)

    def _look(self) -> None:
        with self._changed:
            replies = tuple(self._replies)
        for reply in replies:
            try:
                reply.look()
                if reply.is_overdue:
                    self._end(reply)
            except Exception as error:
                self._log(f"it cannot be seen whether a request is still wanted: {error}")
