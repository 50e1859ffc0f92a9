"""A row's process: it gets its engine ready, then answers one request after the other over a pipe.

Requests and replies are the data classes here; the process ends with the pipe. Whatever goes wrong in it is a `Failed`.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Answered", "Job", "RowFailed", "Worker"]

_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
_GRACE_S = 10.0


class RowFailed(Exception):
    """A row cannot be measured; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What one pass gave: the answers, wall time and processor time in seconds, and the peak memory of the process."""

    answers: Any
    wall_s: float
    processor_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Failed:
    why: str


class Job(Protocol):
    """What a process does: made in the parent, sent to it, and there made ready once."""

    def ready(self) -> Callable[[Any], Any]:
        """Return what answers a request, warmed up."""
        ...


class Worker:
    """The parent's side of a process; `peak_bytes` is its memory when it was ready."""

    def __init__(self, job: Job) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self.peak_bytes = self._reply().peak_bytes

    def ask(self, request: Any = None) -> Answered:
        """Return the reply to a request.

        Raises:
            RowFailed: the process failed, or ended.
        """
        self._pipe.send(request)
        return self._reply()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def is_alive(self) -> bool:
        """Return whether the process is there."""
        return self._process.is_alive()

    def _reply(self) -> Answered:
        try:
            reply = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_GRACE_S)
            raise RowFailed(f"its process ended with status {self._process.exitcode}") from error
        if isinstance(reply, _Failed):
            self.close()
            raise RowFailed(reply.why)
        return reply


def _serve(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        answer = job.ready()
        pipe.send(Answered(None, 0.0, 0.0, _peak_bytes()))
        while True:
            pipe.send(_timed(answer, pipe.recv()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        pipe.send(_Failed(f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _timed(answer: Callable[[Any], Any], request: Any) -> Answered:
    started_s, processor_s = time.perf_counter(), time.process_time()
    answers = answer(request)
    wall_s, processor_s = time.perf_counter() - started_s, time.process_time() - processor_s
    return Answered(answers, wall_s, processor_s, _peak_bytes())


def _peak_bytes() -> int:
    """Return the peak of this process's resident memory; `getrusage` would count its parent's, from before it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
