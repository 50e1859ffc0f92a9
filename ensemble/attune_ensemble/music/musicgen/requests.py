"""A request to the engine, and the stream that answers it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import AttuneError, RequestCancelled
from attune_client.protocol.sampling import SamplingSettings

__all__ = ["Generation", "MusicStream"]

Audio = npt.NDArray[np.float32]  # [N, C]
_SILENCE: Audio = np.zeros((0, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Generation:
    """One piece of music to make.

    `deadline_s` is how long the whole may take, from submission to the last audio; None: as long as it takes.
    `later` gives the prompt at a time of the piece, in seconds, where it may change on the way; None: it stays.
    """

    prompt: str
    duration_s: float
    seed: int = 0
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    deadline_s: float | None = None
    later: Callable[[float], str] | None = None

    def prompt_at(self, time_s: float) -> str:
        """The prompt of the music at `time_s`; asked on the engine's thread."""
        return self.prompt if self.later is None else self.later(time_s)


class MusicStream:
    """The audio of one request, as it comes. Iterate over it; closing it, or `cancel`, frees its slot.

    The engine puts audio in, the listener takes it out; `buffered_s` is what lies between them.
    """

    def __init__(self, request: Generation, sample_rate: int, wake: Callable[[], None]) -> None:
        """`wake` is called when the listener has taken audio or has gone: there may be work again."""
        self._wake = wake
        self.request = request
        self.sample_rate = sample_rate
        self.submitted_s = time.monotonic()
        self.first_audio_s: float | None = None
        self._chunks: deque[Audio] = deque()
        self._buffered = self._taken = 0
        self._ended = self._cancelled = False
        self._error: AttuneError | None = None
        self._changed = threading.Condition()

    # The listener's side

    def __iter__(self) -> Generator[Audio, None, None]:
        """Yield chunks [N, C] until the piece ends; raise what ended it early. Leaving the loop cancels."""
        return self.chunks()

    def chunks(self, heartbeat_s: float | None = None) -> Generator[Audio, None, None]:
        """Iterate, and yield an empty chunk whenever nothing has come for `heartbeat_s`.

        Between two chunks the caller may look whether anybody still listens.
        """
        try:
            while (chunk := self._next(heartbeat_s)) is not None:
                yield chunk
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give the piece up: its slot is free within a step. Nothing happens once it has ended."""
        with self._changed:
            if not self._ended:
                self._cancelled = True
                self._end(RequestCancelled("the music was cancelled"))
        self._wake()

    def _next(self, timeout_s: float | None) -> Audio | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._chunks or self._ended, timeout_s):
                return _SILENCE
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return None
            chunk = self._chunks.popleft()
            self._buffered -= len(chunk)
            self._taken += len(chunk)
        self._wake()
        return chunk

    # The engine's side

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: it is complete, failed or cancelled."""
        return self._ended

    @property
    def buffered_s(self) -> float:
        """Seconds of audio that the listener has not taken yet."""
        return self._buffered / self.sample_rate

    @property
    def taken_s(self) -> float:
        """Seconds of audio that the listener has taken."""
        return self._taken / self.sample_rate

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        deadline_s = self.request.deadline_s
        return deadline_s is not None and time.monotonic() - self.submitted_s > deadline_s

    def put(self, audio: Audio) -> None:
        """Add audio; what comes after the end is dropped."""
        with self._changed:
            if self._ended or not len(audio):
                return
            if self.first_audio_s is None:
                self.first_audio_s = time.monotonic()
            self._chunks.append(audio)
            self._buffered += len(audio)
            self._changed.notify_all()

    def complete(self) -> None:
        """Nothing more will come, and all is well."""
        with self._changed:
            self._end(None)

    def fail(self, error: AttuneError) -> None:
        """Nothing more will come: the listener gets what is there, then the error."""
        with self._changed:
            self._end(error)

    def _end(self, error: AttuneError | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            if self._cancelled:
                self._chunks.clear()
            self._changed.notify_all()
