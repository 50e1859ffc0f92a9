"""What the engine counts, and how it reads as metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

__all__ = ["METRICS", "EngineCounters", "EngineStatistics"]

METRICS = {
    "musicgen_active_slots": "Requests in the running batch",
    "musicgen_waiting_requests": "Requests that wait for a slot",
    "musicgen_steps_per_second": "Steps of the decoder in a second, over the last ten",
    "musicgen_audio_seconds_per_second": "Seconds of audio made in a second, over the last ten",
    "musicgen_first_audio_seconds": "Median time from a request to its first audio, of the last hundred",
    "musicgen_queue_wait_seconds": "Median time that a request waited for a slot, of the last hundred",
    "musicgen_finished_requests": "Requests that came to their end",
    "musicgen_failed_requests": "Requests that an error ended",
}
"""Name and meaning of each metric."""

_RATE_WINDOW_S = 10.0
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What is going on now, and totals since the start; times are in seconds."""

    active: int
    waiting: int
    steps: int
    frames: int
    finished: int
    failed: int
    steps_per_s: float
    audio_per_s: float
    first_audio_s: float
    queue_wait_s: float

    def metrics(self) -> dict[str, float]:
        """The values of :data:`METRICS`, by name."""
        values = (
            self.active,
            self.waiting,
            self.steps_per_s,
            self.audio_per_s,
            self.first_audio_s,
            self.queue_wait_s,
            self.finished,
            self.failed,
        )
        return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


class EngineCounters:
    """Counts what the engine's threads report; any thread may read."""

    def __init__(self, frame_rate: float) -> None:
        self._frame_rate = frame_rate
        self._lock = threading.Lock()
        self._steps = self._frames = self._finished = self._failed = 0
        self._recent: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])
        self._first_audio_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._queue_wait_s: deque[float] = deque(maxlen=_REMEMBERED)

    def stepped(self) -> None:
        """One step of the decoder was made."""
        with self._lock:
            self._steps += 1
            now = time.monotonic()
            if now - self._recent[-1][0] > _RATE_WINDOW_S / 10:
                self._recent.append((now, self._steps, self._frames))
                while now - self._recent[0][0] > _RATE_WINDOW_S:
                    self._recent.popleft()

    def made(self, frames: int) -> None:
        """Frames became whole."""
        with self._lock:
            self._frames += frames

    def finished(self) -> None:
        """A request came to its end."""
        with self._lock:
            self._finished += 1

    def failed(self) -> None:
        """An error ended a request."""
        with self._lock:
            self._failed += 1

    def admitted(self, waited_s: float) -> None:
        """A request got its slot."""
        with self._lock:
            self._queue_wait_s.append(waited_s)

    def heard(self, after_s: float) -> None:
        """A request got its first audio."""
        with self._lock:
            self._first_audio_s.append(after_s)

    def read(self, active: int, waiting: int) -> EngineStatistics:
        """Everything now."""
        with self._lock:
            then_s, steps, frames = self._recent[0]
            elapsed_s = max(time.monotonic() - then_s, 1e-9)
            return EngineStatistics(
                active=active,
                waiting=waiting,
                steps=self._steps,
                frames=self._frames,
                finished=self._finished,
                failed=self._failed,
                steps_per_s=(self._steps - steps) / elapsed_s,
                audio_per_s=(self._frames - frames) / self._frame_rate / elapsed_s,
                first_audio_s=median(self._first_audio_s or [0.0]),
                queue_wait_s=median(self._queue_wait_s or [0.0]),
            )
