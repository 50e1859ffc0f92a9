"""Calls to the server, and how each of them ended.

    ended = attempt(Prompt(), client)  # whose timeout_s is its patience
    print(ended.outcome, ended.seconds, ended.error)

A call is a small object that can be sent to another process. It is called with a client and a function that it calls
whenever the server was heard; it returns when the answer is complete, and raises what the client raises.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from attune_client.client import AttuneClient
from attune_client.protocol.errors import AttuneError, RequestTimeout, ServerBusy, StreamEndedEarly

__all__ = ["Analyse", "Call", "Ended", "Outcome", "Play", "Prompt", "Tally", "attempt", "describe", "judge"]

Heard = Callable[[], None]


class Outcome(StrEnum):
    """How a call ended, as its caller sees it."""

    ANSWERED = "answered"
    ERROR = "error"
    """An `AttuneError` that came from the server, or that says that no server is there."""
    LOST = "lost"
    """It ended without an answer and without such an error, or with one that shows the server's inside."""
    HUNG = "hung"
    """Nothing came until the client's own patience ended."""


class Call(Protocol):
    """What is asked."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def __call__(self, client: AttuneClient, heard: Heard) -> None:
        """Ask, and return when the answer is complete."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """One call that has ended; plain data, which other processes send.

    `error` is the name of the exception's class, `started_s` is of `time.monotonic`, which all processes share.
    """

    name: str
    outcome: Outcome
    started_s: float
    seconds: float
    error: str = ""
    message: str = ""
    retry_after_s: int | None = None

    @property
    def at_s(self) -> float:
        """When it ended, of `time.monotonic`."""
        return self.started_s + self.seconds

    def __str__(self) -> str:
        told = f": {self.error}: {self.message}" if self.error else ""
        return f"{self.name} {self.outcome} after {self.seconds:.1f} s{told}"


class Tally:
    """The calls of a row; safe to add to from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: list[Ended] = []

    def add(self, *ended: Ended) -> None:
        """Put calls down."""
        with self._lock:
            self._ended += ended

    def all(self) -> list[Ended]:
        """Every call so far, in the order in which they were put down."""
        with self._lock:
            return list(self._ended)

    def count(self) -> Counter[Outcome]:
        """How many ended in which way."""
        return Counter(ended.outcome for ended in self.all())


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to make a prompt of: the cheapest call, answered by four models."""

    text: str = "rain on the window, and nobody to wait for"
    deadline_s: float | None = None
    name: str = "prompt"

    def __call__(self, client: AttuneClient, heard: Heard) -> None:
        """Ask once."""
        client.prompt(self.text, deadline_s=self.deadline_s)


@dataclass(frozen=True, slots=True)
class Analyse:
    """A recording to analyse: transcription and regression, most of the models."""

    audio: bytes = field(repr=False)
    deadline_s: float | None = None
    name: str = "analyse"

    def __call__(self, client: AttuneClient, heard: Heard) -> None:
        """Ask once."""
        client.analyse(self.audio, deadline_s=self.deadline_s)


@dataclass(frozen=True, slots=True)
class Play:
    """Music of `seconds`, for a text, or for a recording where there is one.

    Args:
        seconds: length of the music.
        audio: a recording.
        pause_s: how long the listener waits before each chunk but the first, as a slow one does.
        chunks: leave after so many chunks; all if None. Then the answer is complete all the same.
        deadline_s: until when all of it is wanted.
    """

    seconds: float = 1.0
    audio: bytes | None = field(default=None, repr=False)
    text: str = "rain on the window, and nobody to wait for"
    pause_s: float = 0.0
    chunks: int | None = None
    deadline_s: float | None = None
    name: str = "play"

    def __call__(self, client: AttuneClient, heard: Heard) -> None:
        """Ask once, and listen."""
        source = {"text": self.text} if self.audio is None else {"audio": self.audio}
        with client.play(**source, duration_s=self.seconds, seed=7, deadline_s=self.deadline_s) as stream:
            for number, _ in enumerate(stream, start=1):
                heard()
                if number == self.chunks:
                    return
                time.sleep(self.pause_s)
                heard()  # a listener's own pause is no silence of the server


_PATIENCE_ENDED = re.compile(r"nothing came|Deadline Exceeded$")
"""What a client says when it gave up by itself: the server had told it nothing, not even that its deadline passed."""

_INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|[Ss]tub process|shared memory (pool|key|region)|shm_|triton_python_backend"
    r"|TRITONSERVER|/tmp/|/dev/(?!shm)"
)
"""What no client should have to read: the names of processes, regions, files and lines of the server.

That the server's /dev/shm is full, and how it gets more, may be said: it is what an operator has to know.
"""


def judge(error: Exception) -> Outcome:
    """How a call that raised `error` has ended."""
    if not isinstance(error, AttuneError):
        return Outcome.LOST
    if isinstance(error, RequestTimeout) and _PATIENCE_ENDED.search(str(error)):
        return Outcome.HUNG
    # The client saw the stream end like a whole one, and counted.
    if isinstance(error, StreamEndedEarly) and isinstance(error.__context__, StopIteration):
        return Outcome.LOST
    return Outcome.LOST if _INSIDE.search(str(error)) else Outcome.ERROR


def attempt(call: Call, client: AttuneClient, heard: Heard = lambda: None) -> Ended:
    """Make the call and judge how it ended; the client's `timeout_s` is its patience."""
    started_s = time.monotonic()
    try:
        call(client, heard)
    except Exception as error:  # whatever it is, it has to be told
        return Ended(
            call.name,
            judge(error),
            started_s,
            time.monotonic() - started_s,
            type(error).__name__,
            str(error),
            error.retry_after_s if isinstance(error, ServerBusy) else None,
        )
    return Ended(call.name, Outcome.ANSWERED, started_s, time.monotonic() - started_s)


def describe(ended: Iterable[Ended], most: int = 5) -> str:
    """The first few calls, for a message."""
    told = [str(one) for one in ended]
    return "; ".join(told[:most]) + (f"; and {len(told) - most} more" if len(told) > most else "")
