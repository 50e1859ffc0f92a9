"""Looks at the processes of a server: which of its models' have ended, or are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from attune_ensemble.serving.launcher.processes import Process, ProcessState, process_of, state_of
from attune_ensemble.serving.supervisor.policy import Ending

__all__ = ["ProcessWatch", "kill"]


class ProcessWatch:
    """Knows which processes there ought to be; for one thread. One that cannot be seen is taken to be well.

    Args:
        server: process id of the server itself.
        stopped_s: how long a process may be stopped before that counts.
    """

    def __init__(self, server: int, stopped_s: float) -> None:
        self._server = process_of(server)
        self._stopped_s = stopped_s
        self._expected: dict[str, tuple[Process, ...]] = {}
        self._stopped: dict[Process, float] = {}

    def expect(self, stubs: Mapping[str, tuple[Process, ...]]) -> None:
        """From now on these are the processes of these models; of others nothing changes."""
        self._expected |= stubs

    def processes_of(self, model: str) -> tuple[Process, ...]:
        """The processes that a model ought to have."""
        return self._expected.get(model, ())

    def forget(self, model: str) -> None:
        """The processes of a model are of no interest until others are expected."""
        self._expected.pop(model, None)

    def endings(self) -> dict[str, tuple[Ending, dict[str, Any]]]:
        """The models that have a process that has ended or is stopped, with what is known of it."""
        found: dict[str, tuple[Ending, dict[str, Any]]] = {}
        for model, stubs in self._expected.items():
            for stub in stubs:
                if (ending := self._ending_of(stub)) is not None:
                    found[model] = ending
        return found

    def server_is_stopped(self) -> bool:
        """Whether the server itself is stopped, and has been for too long."""
        return self._is_stopped(self._server, _seen(self._server).is_stopped)

    def _ending_of(self, stub: Process) -> tuple[Ending, dict[str, Any]] | None:
        state = _seen(stub)
        if state.has_ended:
            known = {} if state.signal is None else {"signal": state.signal}
            return Ending.DIED, {"pid": stub.pid, **known}
        return (Ending.STOPPED, {"pid": stub.pid}) if self._is_stopped(stub, state.is_stopped) else None

    def _is_stopped(self, stub: Process, is_stopped: bool) -> bool:
        if not is_stopped:
            self._stopped.pop(stub, None)
            return False
        since_s = self._stopped.setdefault(stub, time.monotonic())
        return time.monotonic() - since_s >= self._stopped_s


def kill(stubs: tuple[Process, ...]) -> None:
    """Kill those processes that have not ended; raises `OSError` where one cannot be seen."""
    for stub in stubs:
        if not state_of(stub).has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub.pid, signal.SIGKILL)


def _seen(process: Process) -> ProcessState:
    """How it is; as if well where that cannot be seen, as with too many files open: the next look may see it."""
    try:
        return state_of(process)
    except OSError:
        return ProcessState()
