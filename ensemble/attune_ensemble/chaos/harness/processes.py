"""What the system shows of a server: its processes, what they hold of memory, files and ports, and what is left."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Footprint", "Trace", "find_stubs", "footprint", "listens", "tree"]

_SHM = Path("/dev/shm")
_STUB = "triton_python_backend_stub"
_MODEL = re.compile(r"/([a-z_]+)/\d+/[^/]*$")
_MAPPED = re.compile(r"(/dev/shm/\S+)")
_POLL_S = 0.1
_SWEPT_S = 5.0
_MIB = 2**20

_Gone = (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError, PermissionError)


def tree(root: int) -> list[psutil.Process]:
    """A process and all that descend from it; nothing where it has ended."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def find_stubs(processes: Iterable[psutil.Process]) -> dict[str, psutil.Process]:
    """The stub of each model among processes, by the model's name."""
    found = {}
    for process in processes:
        command = _command(process)
        if len(command) > 1 and Path(command[0]).name == _STUB and (model := _MODEL.search(command[1])):
            found[model[1]] = process
    return found


def find_server(processes: Iterable[psutil.Process]) -> psutil.Process | None:
    """The packaged server among processes."""
    return next((one for one in processes if _command(one)[:1] and Path(_command(one)[0]).name == "tritonserver"), None)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except _Gone:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it still does something: one that has ended, and that nobody has waited for, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server holds, all of its processes together.

    `memory_mib` counts pages that several of them share once (PSS), `shm_mib` the regions in /dev/shm that they map.
    """

    memory_mib: float
    handles: int
    shm_mib: float
    processes: int

    def __str__(self) -> str:
        return f"{self.memory_mib:.0f} MiB, {self.handles} handles, {self.shm_mib:.0f} MiB of /dev/shm"


def footprint(processes: Iterable[psutil.Process]) -> Footprint:
    """Measure processes; those that end meanwhile are left out."""
    memory, handles, count = 0, 0, 0
    regions: set[str] = set()
    for process in processes:
        try:
            memory += process.memory_full_info().pss
            handles += process.num_fds()
            regions |= set(_regions(process))
            count += 1
        except _Gone:
            continue
    return Footprint(memory / _MIB, handles, sum(_size(Path(region)) for region in regions) / _MIB, count)


def _regions(process: psutil.Process) -> Iterator[str]:
    """Paths of the shared memory regions that a process maps."""
    try:
        yield from _MAPPED.findall(Path(f"/proc/{process.pid}/maps").read_text())
    except _Gone:
        return


def _size(region: Path) -> int:
    try:
        return region.stat().st_blocks * 512
    except OSError:
        return 0


def listens(port: int) -> bool:
    """Whether somebody takes connections at a port of the loopback interface."""
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex(("127.0.0.1", port)) == 0


class Trace:
    """Everything by which a server could still be there after its end; `note` is called while it runs.

    Args:
        folder: its temporary folder (TMPDIR), in which nothing may stay.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, psutil.Process] = {}
        self._regions: set[str] = set()
        self._names: set[str] = set()
        self._ports: set[int] = set()

    def note(self, processes: Iterable[psutil.Process], ports: Iterable[int]) -> None:
        """Put down what there is now."""
        for process in processes:
            self._processes[process.pid] = process
            self._regions |= set(_regions(process))
        self._ports |= set(ports)
        self._names |= {entry.name for entry in self._entries()}

    def remains(self, within_s: float) -> list[str]:
        """What is still there, one line each, when it has had so long to go away; nothing is returned at once."""
        return _poll(self._remaining, within_s)

    def _remaining(self) -> list[str]:
        alive = [process for process in self._processes.values() if is_alive(process)]
        named = {str(region) for name in self._names for region in _SHM.glob(f"{name}*")}
        return [
            *(f"process {process.pid} ({' '.join(_command(process))[:80]})" for process in alive),
            *(f"port {port}" for port in self._ports if listens(port)),
            *sorted(region for region in self._regions | named if Path(region).exists()),
            *(f"temporary {entry.name}" for entry in self._entries()),
        ]

    def _entries(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def sweep(self) -> None:
        """End and remove what is left, so that the next row begins with nothing of it."""
        alive = [process for process in self._processes.values() if is_alive(process)]
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_SWEPT_S)
        for region in self._regions:
            Path(region).unlink(missing_ok=True)


def _poll(look: Callable[[], list[str]], within_s: float) -> list[str]:
    until_s = time.monotonic() + within_s
    while (seen := look()) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return seen
