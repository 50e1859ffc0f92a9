"""The processes of a server on the same machine, and the processor time of each."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

__all__ = ["GUARD", "SERVER", "server_processes", "server_processor_s"]

SERVER, GUARD, _OTHER = "tritonserver", "guard", "other"
_ENDED = ("Z", "X")
_STUB = "triton_python_backend_stub"
_SESSION, _PARENT, _USER, _SYSTEM = 3, 1, 11, 12
"""Places among the fields of /proc/<pid>/stat, counted from the state on."""


def server_processor_s(server_pid: int) -> dict[str, float]:
    """Processor time of a server's processes since their start, in seconds, by what they do.

    By the name of a model whose process it is; `tritonserver` itself; and `guard`, which is the supervisor with the
    door in front of the server, the process that has started it. Empty where the server is not on this machine.
    """
    spent_s: defaultdict[str, float] = defaultdict(float)
    server = _stat(server_pid)
    if server is None:
        return {}
    for pid, fields in server_processes(server_pid):
        spent_s[_role(pid, server_pid)] += _spent_s(fields)
    guard = _stat(int(server[_PARENT]))
    if guard is not None:
        spent_s[GUARD] += _spent_s(guard)
    return dict(spent_s)


def server_processes(server_pid: int) -> Iterator[tuple[int, list[str]]]:
    """The living processes of the session that a server leads, itself among them.

    Of each its id, and the fields of /proc/<pid>/stat from the state on.
    """
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and int(fields[_SESSION]) == server_pid:
            yield pid, fields


def _role(pid: int, server_pid: int) -> str:
    """What a process of the server's session does."""
    if pid == server_pid:
        return SERVER
    program, *arguments = _command(pid)
    # The first argument of a stub is the file of its model: <model>/<version>/<file>.
    parts = Path(arguments[0]).parts if arguments else ()
    return parts[-3] if Path(program).name == _STUB and len(parts) >= 3 else _OTHER


def _spent_s(fields: list[str]) -> float:
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def _pids() -> Iterator[int]:
    proc = Path("/proc")
    return (int(entry.name) for entry in (proc.iterdir() if proc.is_dir() else ()) if entry.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; None where there is no such process, or none any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _ENDED else fields


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]
