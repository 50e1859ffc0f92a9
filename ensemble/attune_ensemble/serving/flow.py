"""Flow control: a stream is made no faster than somebody reads it, and nothing between the two piles up."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["AHEAD_BYTES", "PART_BYTES", "Ahead", "Handover"]

AHEAD_BYTES = 8 * 2**20
"""How far a stream may be ahead of its reader: 32 s of stereo music at 32 kHz, so that no listener hears a pause."""

PART_BYTES = 4 * 2**20
"""How large a part of a stream is, for callers who take it in parts (`protocol.models.PART`): 32 s of music in mono."""

_MOST_WAITING = 4


class Ahead:
    """How far the responses of one stream are ahead of its reader; for one thread.

    Args:
        most_bytes: it is far enough from here on; a single response may be larger.
        taken: how many responses the reader has taken in all; None where it does not say, and is not waited for.
    """

    def __init__(self, most_bytes: int, taken: Callable[[], int | None]) -> None:
        self._most_bytes, self._count_taken = most_bytes, taken
        self._sizes: deque[int] = deque()  # of the responses that were not taken yet when the reader was last asked
        self._bytes = 0
        self._taken = 0

    def sent(self, num_bytes: int) -> None:
        """One more response was sent."""
        self._sizes.append(num_bytes)
        self._bytes += num_bytes

    def is_far_enough(self) -> bool:
        """Whether the next response is for later. The reader is asked only where this may be so."""
        if self._bytes >= self._most_bytes:
            self._follow()
        return self._bytes >= self._most_bytes

    def _follow(self) -> None:
        count = self._count_taken()
        while self._sizes and (count is None or self._taken < count):
            self._bytes -= self._sizes.popleft()
            self._taken += 1


class Handover:
    """Hands things from one thread to another, which takes them one by one; only few wait in between."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(_MOST_WAITING)
        self._closed = False

    def put(self, item: Any) -> None:
        """Hand over one more, as soon as there is room; one that nobody takes any more is dropped."""
        self._room.acquire()
        if self._closed:
            self._room.release()
        else:
            self._items.put(item)

    def put_at_once(self, item: Any) -> None:
        """Hand over one more, behind those that wait, whether or not there is room."""
        self._items.put(item)

    def get(self, timeout_s: float) -> Any:
        """The next one; `queue.Empty` if none comes in time."""
        item = self._items.get(timeout=timeout_s)
        self._room.release()
        return item

    def close(self) -> None:
        """Take no more; whoever hands over is never held up again."""
        self._closed = True
        self._room.release()
