"""Streams in parts: each part is the answer to a request of its own, and none is made before it is asked for.

Triton keeps every response to a request until the last one is sent (release 2.51: its messages are cleared, and keep
their memory), so ten minutes of music would stay there three times over. In parts, only the current one does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from attune_client.protocol.errors import RequestCancelled
from attune_ensemble.serving.reply import Reply

__all__ = ["PartedStreams"]


class PartedStreams:
    """The streams of one model that wait until their next part is asked for, by their callers' leases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[int, Reply, threading.Event]] = {}

    @contextmanager
    def expecting(self, lease: str, number: int, reply: Reply) -> Iterator[threading.Event]:
        """While the context lasts, that part may be asked for; the event says that it was."""
        asked = threading.Event()
        with self._lock:
            self._waiting[lease] = number, reply, asked
        try:
            yield asked
        finally:
            with self._lock:
                self._waiting.pop(lease, None)

    def ask(self, lease: str, number: int, reply: Reply) -> None:
        """Let the stream for that lease go on as the answer to this request.

        Raises `RequestCancelled` where no stream waits for it.
        """
        with self._lock:
            expected, waiting, asked = self._waiting.get(lease, (None, None, None))
            if waiting is None or asked is None or expected != number:
                raise RequestCancelled(f"no stream waits for its part {number} to be asked for")
            del self._waiting[lease]
            waiting.go_on_as(reply)
            asked.set()
