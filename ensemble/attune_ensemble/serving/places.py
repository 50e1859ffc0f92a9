"""Admission: so many requests at work, so many waiting, and for one too many an error at once.

Without a bound the requests that a model cannot serve yet pile up in silence, and their clients cannot tell a long
queue from a dead server.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from attune_client.protocol.errors import ServerBusy

__all__ = ["Places"]

_log = logging.getLogger(__name__)

_FIRST_GUESS_S = 5.0
_MEMORY = 0.8
_LONGEST_HINT_S = 60

Work = Callable[[], None]


class Places:
    """Runs each piece of work in a thread, first come, first served.

    Args:
        name: whose places they are, for messages.
        at_work: pieces of work that may run at once.
        waiting: how many more may wait.
    """

    def __init__(self, name: str, at_work: int, waiting: int) -> None:
        self._name = name
        self._at_work, self._most_waiting = at_work, waiting
        self._lock = threading.Lock()
        self._running = 0
        self._queue: deque[Work] = deque()
        self._typical_s = _FIRST_GUESS_S

    def take(self, work: Work) -> None:
        """Start the work now, or when its turn comes.

        Raises:
            ServerBusy: every place is taken.
        """
        with self._lock:
            if self._running == self._at_work:
                if len(self._queue) == self._most_waiting:
                    raise ServerBusy(
                        f"{self._name} has {self._running} requests at work and {len(self._queue)} waiting",
                        self.retry_after_s,
                    )
                self._queue.append(work)
                return
            # Under the lock, and counted afterwards: where no thread can be started, no place is taken and nobody has
            # begun to wait for it. A daemon: work that never comes back must not keep the process alive when the
            # server stops.
            threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True).start()
            self._running += 1

    def withdraw(self, work: Work) -> bool:
        """Take work that waits out of the queue; False if it has begun, and goes on."""
        with self._lock:
            if work not in self._queue:
                return False
            self._queue.remove(work)
            return True

    @property
    def retry_after_s(self) -> int:
        """How long until a place is likely to be free, in seconds: requests end one after the other."""
        return min(max(1, math.ceil(self._typical_s / self._at_work)), _LONGEST_HINT_S)

    def _run(self, work: Work | None) -> None:
        while work is not None:
            started_s = time.monotonic()
            try:
                work()
            except BaseException:  # whatever it is, the place must not be lost, nor whoever waits for it
                _log.exception("%s: a piece of work failed", self._name)
            finally:
                work = self._next(time.monotonic() - started_s)

    def _next(self, lasted_s: float) -> Work | None:
        """The work that has the place now, after one that lasted so long; None where none waits: the place is free."""
        with self._lock:
            self._typical_s = _MEMORY * self._typical_s + (1 - _MEMORY) * lasted_s
            if self._queue:
                return self._queue.popleft()
            self._running -= 1
            return None
