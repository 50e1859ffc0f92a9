"""What the engine counts, and how it reads as metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

__all__ = ["METRICS", "EngineCounters", "EngineStatistics"]

METRICS = {
    "musicgen_healthy": "1 while it takes requests, 0 once it has failed for good",
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
_GRAIN_S = 0.1
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What is going on now, and totals since the start; times are in seconds."""

    healthy: bool
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
            self.healthy,
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
        self._born_s = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque()  # when, and how many steps and frames, a tenth at a time
        self._first_audio_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._queue_wait_s: deque[float] = deque(maxlen=_REMEMBERED)

    def stepped(self) -> None:
        """One step of the decoder was made."""
        with self._lock:
            self._steps += 1
            self._count(1, 0)

    def made(self, frames: int) -> None:
        """Frames became whole."""
        with self._lock:
            self._frames += frames
            self._count(0, frames)

    def _count(self, steps: int, frames: int) -> None:
        """Add to what was done in this tenth of a second, and forget what is too old."""
        now_s = time.monotonic()
        if self._recent and now_s - self._recent[-1][0] < _GRAIN_S:
            since_s, steps_before, frames_before = self._recent.pop()
            self._recent.append((since_s, steps_before + steps, frames_before + frames))
        else:
            self._recent.append((now_s, steps, frames))
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._recent and now_s - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()

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

    def read(self, active: int, waiting: int, *, healthy: bool = True) -> EngineStatistics:
        """Everything now. Rates are over the last ten seconds, or as long as there were any, idle ones included."""
        with self._lock:
            now_s = time.monotonic()
            self._forget(now_s)
            window_s = max(min(_RATE_WINDOW_S, now_s - self._born_s), _GRAIN_S)
            return EngineStatistics(
                healthy=healthy,
                active=active,
                waiting=waiting,
                steps=self._steps,
                frames=self._frames,
                finished=self._finished,
                failed=self._failed,
                steps_per_s=sum(steps for _, steps, _ in self._recent) / window_s,
                audio_per_s=sum(frames for _, _, frames in self._recent) / self._frame_rate / window_s,
                first_audio_s=median(self._first_audio_s or [0.0]),
                queue_wait_s=median(self._queue_wait_s or [0.0]),
            )
