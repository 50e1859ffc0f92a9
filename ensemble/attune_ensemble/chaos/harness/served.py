"""One `attune serve`, started by its command line: its events, its processes, its end.

Whatever becomes of this process, nothing of the server goes on after it: a janitor sees to that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from attune_ensemble.chaos.harness.processes import (
    Footprint,
    Trace,
    find_server,
    find_stubs,
    footprint,
    is_alive,
    tree,
)
from attune_ensemble.janitor import Janitor

__all__ = ["SERVE", "DidNotStart", "Event", "Options", "Served"]

SERVE = (sys.executable, "-m", "attune_client", "serve", "--free-ports", "--log-format", "json")
START_S = 180.0
"""How long a server may take until it is ready, on a machine that does something else too."""

_MARK = "ATTUNE_CHAOS"
"""Environment variable by which the janitor finds what belongs to a server."""

_STOP_S = 60.0
_SWEEP_S = 3.0
"""How long what is killed may take to go away, and its own janitor to tidy up after it."""

_ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")


class DidNotStart(Exception):
    """The server ended, or was not ready in time; `code` is its exit status, `told` what it wrote to stderr."""

    def __init__(self, code: int | None, told: str) -> None:
        super().__init__(f"it did not start (exit status {code}): {told[-600:]}")
        self.code, self.told = code, told


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the server about itself; `at_s` is when it was read, of `time.monotonic`."""

    name: str
    at_s: float
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """How a server is started.

    Args:
        repository: the model repository.
        log_file: its log; what it tells on stderr is written beside it, as `<log_file>.events`.
        arguments: more arguments of `attune serve`.
        environment: more environment variables.
        temporary: its temporary folder; a new one if None.
        command: the program and its arguments, before `--repository` and `--log-file`.
    """

    repository: Path
    log_file: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    temporary: Path | None = None
    command: Sequence[str] = SERVE


class Served:
    """A running `attune serve`; `start` returns when it is ready, `end` ends it whatever its state."""

    def __init__(self, options: Options) -> None:
        self._options = options
        # Short, for a unix socket in it has at most 107 characters.
        own_folder = Path(tempfile.mkdtemp(prefix="chaos-")) if options.temporary is None else None
        self.folder = options.temporary or Path(str(own_folder))
        self._janitor = Janitor(_MARK, secrets.token_hex(8), own_folder)
        self.trace = Trace(self.folder)
        self._copy = options.log_file.with_name(f"{options.log_file.name}.events")
        self._process: subprocess.Popen[str] | None = None
        self._events: list[Event] = []
        self._told: list[str] = []
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None

    # --- start and end ---

    def start(self, within_s: float = START_S) -> Self:
        """Start it, and return when it says that it is ready.

        Raises:
            DidNotStart: it ended before, or it was not ready in time.
        """
        self.launch()
        if self.wait_for("ready", within_s=within_s) is None:
            raise DidNotStart(self.process.poll(), self.told)
        self.note()
        return self

    def launch(self) -> None:
        """Start the program, and do not wait."""
        options = self._options
        options.log_file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            self._copy.unlink(missing_ok=True)
        command = [*options.command, "--repository", str(options.repository), "--log-file", str(options.log_file)]
        self._process = subprocess.Popen(
            [*command, *options.arguments],
            env=os.environ | {"TMPDIR": str(self.folder)} | self._janitor.environment | dict(options.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="chaos-events", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            # Opened each time: on a full disk, which is one of the rows, a line is lost, and the next may be kept.
            with contextlib.suppress(OSError), self._copy.open("a", encoding="utf-8") as file:
                file.write(line)
            self._take(line)
        with self._changed:
            self._changed.notify_all()

    def _take(self, line: str) -> None:
        fields: Any = None
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
        with self._changed:
            self._told.append(line)
            if isinstance(fields, dict) and "event" in fields:
                self._events.append(Event(str(fields["event"]), time.monotonic(), fields))
            self._changed.notify_all()

    def end(self) -> int | None:
        """Stop it in order, or else by force, and remove its folder; returns the exit status."""
        code = self.terminate() if self._process is not None else None
        self.remove()
        return code

    def terminate(self, within_s: float = _STOP_S) -> int | None:
        """Send SIGTERM and wait; the exit status, None if it had to be killed."""
        self.note()
        self.process.terminate()
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def remove(self) -> None:
        """Kill whatever is left of it, and remove its own temporary folder."""
        self.note()
        self._janitor.finish()
        if self._process is not None:
            self._process.wait()
        self.trace.remains(_SWEEP_S)
        self.trace.sweep()

    def wait_exit(self, within_s: float) -> int | None:
        """Wait until it has ended; its exit status, None if it still runs."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(5.0)
        return code

    # --- what it is ---

    @property
    def process(self) -> subprocess.Popen[str]:
        """The supervisor."""
        assert self._process is not None, "it has not been started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether the supervisor has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def told(self) -> str:
        """All that it wrote to stderr so far."""
        with self._changed:
            return "".join(self._told)

    @property
    def url(self) -> str:
        """`host:port` of its gRPC, as the last `ready` said."""
        return self._address("grpc")

    @property
    def http_url(self) -> str:
        """`host:port` of its HTTP."""
        return self._address("http")

    def _address(self, kind: str) -> str:
        for event in reversed(self.events("ready")):
            for name, value in event.fields.items():
                if name.startswith(kind) and (found := _ADDRESS.search(str(value))):
                    return found[0]
        raise DidNotStart(None, f"no `ready` with its {kind} address: {self.told}")

    def get(self, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
        """GET of its HTTP port: status and body; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http_url}{path}", timeout=timeout_s) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError as error:
            return 0, str(error)

    # --- events ---

    def events(self, name: str | None = None, since_s: float = 0.0, **fields: Any) -> list[Event]:
        """The events so far, of a name, since a time of `time.monotonic`, and with these fields."""
        with self._changed:
            return [
                event
                for event in self._events
                if (name is None or event.name == name)
                and event.at_s >= since_s
                and all(event.fields.get(key) == value for key, value in fields.items())
            ]

    def wait_for(self, name: str, within_s: float, since_s: float = 0.0, **fields: Any) -> Event | None:
        """Wait for an event; None if it does not come in time, or the supervisor has ended."""
        until_s = time.monotonic() + within_s
        while not (found := self.events(name, since_s, **fields)):
            left_s = until_s - time.monotonic()
            if left_s <= 0 or (not self.is_running and not self._is_read_on()):
                return None
            with self._changed:
                self._changed.wait(min(left_s, 0.5))
        return found[0]

    def _is_read_on(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    # --- its processes ---

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all that descend from it."""
        return tree(self.process.pid) if self._process is not None else []

    def note(self) -> None:
        """Put down what there is of it now, for the look at what is left behind."""
        ports = [int(match) for event in self.events("ready") for match in _ADDRESS.findall(json.dumps(event.fields))]
        self.trace.note(self.processes(), ports)

    def left_behind(self, within_s: float) -> list[str]:
        """What is still there of it, so long after its end."""
        return self.trace.remains(within_s)

    def stubs(self) -> dict[str, psutil.Process]:
        """The stub of each model."""
        return find_stubs(self.processes())

    def serving(self) -> dict[str, psutil.Process]:
        """All that must last: the supervisor, the packaged server and each model's stub, by names of theirs."""
        processes = self.processes()
        server = find_server(processes)
        named = {"supervisor": processes[0]} if processes else {}
        return named | ({} if server is None else {"tritonserver": server}) | find_stubs(processes)

    def server(self) -> psutil.Process | None:
        """The packaged server's process; None while there is none."""
        return find_server(self.processes())

    def footprint(self) -> Footprint:
        """What all of its processes hold."""
        return footprint(self.processes())

    def kill_stub(self, model: str) -> float:
        """SIGKILL to a model's stub; when that was, of `time.monotonic`."""
        self.note()
        return _signal(self._stub(model), signal.SIGKILL)

    def kill_server(self) -> float:
        """SIGKILL to the packaged server; when that was, of `time.monotonic`."""
        self.note()
        server = self.server()
        if server is None:
            raise LookupError("there is no packaged server")
        return _signal(server, signal.SIGKILL)

    def kill_supervisor(self) -> float:
        """SIGKILL to `attune serve` itself; when that was, of `time.monotonic`."""
        self.note()
        killed_s = time.monotonic()
        self.process.kill()
        return killed_s

    @contextlib.contextmanager
    def paused_stub(self, model: str) -> Any:
        """SIGSTOP to a model's stub for as long as the `with` block lasts."""
        self.note()
        stub = self._stub(model)
        stub.suspend()
        try:
            yield
        finally:
            if is_alive(stub):
                stub.resume()

    def _stub(self, model: str) -> psutil.Process:
        stubs = self.stubs()
        if model not in stubs:
            raise LookupError(f"{model} has no stub; there are those of {', '.join(sorted(stubs)) or 'none'}")
        return stubs[model]


def _signal(process: psutil.Process, number: signal.Signals) -> float:
    sent_s = time.monotonic()
    process.send_signal(number)
    return sent_s
