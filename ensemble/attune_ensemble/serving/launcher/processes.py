"""The processes of a server, seen in /proc: which of them runs which model, and how each is."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Process",
    "ProcessState",
    "process_of",
    "processes_of_session",
    "processor_seconds",
    "state_of",
    "stubs_of_session",
]

_STUB = "triton_python_backend_stub"
_INSTANCE = re.compile(r"(.+)_\d+_\d+")
_ENDED = ("Z", "X", "x")
_STOPPED = "T"
_SIGNAL_BITS = 0x7F
# Places among the fields of /proc/<pid>/stat, counted from the state on (proc(5) counts from 1, and the state is 3).
_STARTED, _EXIT_CODE = 22 - 3, 52 - 3
_USER_TIME, _SYSTEM_TIME = 14 - 3, 15 - 3


@dataclass(frozen=True, slots=True)
class Process:
    """A process, such as an instance of a Python model. Ids are used again, but not with the same start time."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class ProcessState:
    """How a process is. `signal` is the name of the signal that ended it, where that is known."""

    has_ended: bool = False
    is_stopped: bool = False
    signal: str | None = None


def processes_of_session(session: int) -> Iterator[int]:
    """Process ids of a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _session_of(int(entry.name)) == session:
            yield int(entry.name)


def stubs_of_session(session: int, models: Collection[str]) -> dict[str, tuple[Process, ...]]:
    """The living stubs of each of those models that has any."""
    found: dict[str, tuple[Process, ...]] = {}
    for pid in processes_of_session(session):
        name, fields = _model_of(pid), _stat_of(pid)
        if name is not None and name in models and fields is not None and fields[0] not in _ENDED:
            found[name] = (*found.get(name, ()), Process(pid, int(fields[_STARTED])))
    return found


def _model_of(pid: int) -> str | None:
    """The model whose stub a process is: one of the stub's arguments is `<model>_<instance>_<device>`."""
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if Path(program).name != _STUB:
        return None
    # The model's path and the region's name come first; nothing else has this form.
    names = [found[1] for argument in reversed(arguments) if (found := _INSTANCE.fullmatch(argument))]
    return next((name for name in names if "/" not in name), None)


def process_of(pid: int) -> Process:
    """The process that has this id now."""
    fields = _stat_of(pid)
    return Process(pid, int(fields[_STARTED]) if fields else -1)


def state_of(process: Process) -> ProcessState:
    """How the process is.

    Raises:
        OSError: it cannot be seen, as where this process has too many files open; that says nothing of the other one.
    """
    fields = _stat_of(process.pid)
    if fields is None or int(fields[_STARTED]) != process.started:
        return ProcessState(has_ended=True)
    if fields[0] in _ENDED:
        return ProcessState(has_ended=True, signal=_signal_name(int(fields[_EXIT_CODE]) & _SIGNAL_BITS))
    return ProcessState(is_stopped=fields[0] == _STOPPED)


def processor_seconds(process: Process) -> float:
    """Processor time that the process has used so far; 0 where it has ended. Raises as `state_of` does."""
    fields = _stat_of(process.pid)
    if fields is None or int(fields[_STARTED]) != process.started:
        return 0.0
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK")


def _stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; None where there is no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _signal_name(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
