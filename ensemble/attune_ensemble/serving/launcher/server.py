"""Starts the packaged tritonserver, waits until it is ready, and stops it.

    with Server(Path("model_repository"), ports=free_ports(), log_file=Path("out/server.log")) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

The server listens on loopback only: its release, 24.10, predates security fixes, so nothing on a network may reach it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.serving.launcher.layout import ServerLayout, build_layout, find_package, server_environment
from attune_ensemble.serving.launcher.log_file import open_log
from attune_ensemble.serving.own_server import OWN_URL
from attune_ensemble.serving.repository import check_repository
from attune_ensemble.serving.scratch import Scratch, clear_abandoned, new_name

__all__ = ["LOOPBACK", "Ports", "Server", "free_ports"]

LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_KILL_GRACE_S = 5.0
_UNLOAD_S = 10.0
# The server logs this when no request is in flight any more and only its models have to be unloaded.
_UNLOADING = "All models are stopped, unloading models"
_LOG_LINES = 15
_SHM_DIR = Path("/dev/shm")
_PREFIX = "attune-serve-"
_PRIVATE = 0o600

# Time limit for loading all models; the server's default, 30 s, is short for a cold disk and two cores.
_MODEL_LOAD_S = 300
# Initial size and growth of a stub's shared memory, which is never released.
_SHM_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ports:
    """The three ports of a server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def free_ports() -> Ports:
    """Return three currently free ports of the loopback interface."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(3)]
    numbers = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return Ports(*numbers)


class Server:
    """A managed tritonserver process: a context manager that starts it, or fails clearly, and always stops it.

    Args:
        repository: the model repository.
        ports: the ports it listens on; `Ports()` are Triton's defaults.
        log_file: log of the server and its models; the previous one is kept as `<name>.1`.
        models: names of the models to load; all if empty.
        exit_timeout_s: time for requests in flight to finish when the server stops.

        `name` is the name of its temporary folder, and the prefix of its shared memory regions.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports,
        log_file: Path,
        models: tuple[str, ...] = (),
        exit_timeout_s: int = 30,
    ) -> None:
        self.repository = repository.resolve()
        self.ports = ports
        self._models = models
        self._exit_timeout_s = exit_timeout_s
        self.name = new_name(_PREFIX)
        self._scratch: Scratch | None = None
        self.log_file = log_file.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http_url(self) -> str:
        """`host:port` for tritonclient.http."""
        return f"{LOOPBACK}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """`host:port` for tritonclient.grpc."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """`host:port` of the Prometheus metrics."""
        return f"{LOOPBACK}:{self.ports.metrics}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when every model is ready.

        Raises:
            ServerUnavailable: no server installed, a model file missing, a port in use, a log or a temporary folder
                that cannot be written, the server died, or it was not ready in time.
        """
        try:
            self._launch()
            self._wait_until_ready()
            self._close_regions()
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        check_repository(self.repository, self._models)
        ports = (self.ports.http, self.ports.grpc, self.ports.metrics)
        if len(set(ports)) < len(ports):
            raise ServerUnavailable(f"the ports of HTTP, gRPC and metrics must be three, not {ports}")
        for port in ports:
            _require_free(port)
        environment = server_environment(os.environ)
        with open_log(self.log_file) as log:
            scratch, layout = self._make_scratch()
            # The models' temporary files are deleted with the server.
            environment["TMPDIR"] = str(scratch.path / "tmp")
            environment[OWN_URL] = self.grpc_url
            # A new session: Ctrl-C in the terminal reaches this process only, which stops the server gracefully.
            self._process = subprocess.Popen(
                self._command(layout),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(scratch.lock,),
            )

    def _make_scratch(self) -> tuple[Scratch, ServerLayout]:
        package = find_package()
        try:
            for name in clear_abandoned(_PREFIX):
                _remove_regions(name)
            self._scratch = Scratch(self.name)
            (self._scratch.path / "tmp").mkdir()
            return self._scratch, build_layout(self._scratch.path, package)
        except OSError as error:
            folder = os.environ.get("TMPDIR", "/tmp")
            raise ServerUnavailable(
                f"the temporary folder {folder} cannot be used ({error.strerror}): name another one in TMPDIR"
            ) from error

    def _close_regions(self) -> None:
        """Restrict the shared memory of requests to this user; Triton makes it readable for all, whatever the umask."""
        for region in _regions(self.name):
            region.chmod(_PRIVATE)

    def stop(self) -> None:
        """Let requests in flight finish, then end the server and every process that it started."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process)
        if self._scratch is not None:
            self._scratch.remove()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        process.terminate()
        try:
            self._await_end(process, before)
        finally:
            # Also after a second Ctrl-C: no stub and no shared memory may be left.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _remove_regions(self.name)

    def _await_end(self, process: subprocess.Popen[bytes], logged: int) -> None:
        """Wait for the requests in flight, up to their time limit, and then a little for the models.

        A stream that its client cancels at the moment of its end leaves the model loaded in this release: the server
        would wait for it until the time limit, although nothing is in flight.
        """
        deadline_s = time.monotonic() + self._exit_timeout_s + _KILL_GRACE_S
        unloading = False
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            if not unloading and _UNLOADING in _text_from(self.log_file, logged):
                unloading, deadline_s = True, min(deadline_s, time.monotonic() + _UNLOAD_S)

    def exit_code(self) -> int | None:
        """Exit code of the server; None while it runs."""
        assert self._process is not None, "the server has not been started"
        return self._process.poll()

    def wait(self) -> int:
        """Wait until the server ends on its own, and return its exit code."""
        assert self._process is not None, "the server has not been started"
        return self._process.wait()

    @property
    def process_id(self) -> int:
        """Process id of the server; its models are in the same session."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    def process_ids(self) -> Iterator[int]:
        """Process ids of the server and its models."""
        if self._process is None:
            return
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _session_of(int(entry.name)) == self._process.pid:
                yield int(entry.name)

    def _command(self, layout: ServerLayout) -> list[str]:
        arguments = {
            "model-repository": self.repository,
            "backend-directory": layout.backend_dir,
            "cache-directory": layout.cache_dir,
            "http-address": LOOPBACK,
            "grpc-address": LOOPBACK,
            "metrics-address": LOOPBACK,
            "http-port": self.ports.http,
            "grpc-port": self.ports.grpc,
            "metrics-port": self.ports.metrics,
            "exit-timeout-secs": self._exit_timeout_s,
        }
        command = [str(layout.binary), *(f"--{name}={value}" for name, value in arguments.items())]
        for backend in ("python", "onnxruntime"):
            settings = {
                "shm-region-prefix-name": f"{self.name}-",
                "shm-default-byte-size": _SHM_BYTES,
                "shm-growth-byte-size": _SHM_BYTES,
                "stub-timeout-seconds": _MODEL_LOAD_S,
            }
            command += [f"--backend-config={backend},{name}={value}" for name, value in settings.items()]
        if self._models:
            command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self._models)]
        return command

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + _MODEL_LOAD_S
        while not _is_ready(self.ports.http):
            if (code := self._process.poll()) is not None:
                raise ServerUnavailable(f"the server ended with code {code} before it was ready\n{self._log_excerpt()}")
            if time.monotonic() > deadline_s:
                raise ServerUnavailable(f"the server was not ready after {_MODEL_LOAD_S} s\n{self._log_excerpt()}")
            time.sleep(_POLL_S)

    def _log_excerpt(self) -> str:
        if not self.log_file.is_file():  # a device or a pipe cannot be read again
            return f"(the log went to {self.log_file})"
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        # Triton's errors start with E and the month; without a GPU there is always one about the CUDA driver.
        errors = [line for line in lines if line[:2] in {"E0", "E1"} and "CudaDriverHelper" not in line]
        return "\n".join([*(errors or lines)[-_LOG_LINES:], f"(the whole log: {self.log_file})"])


def _regions(name: str) -> Iterator[Path]:
    """Return the shared memory regions of the server of that name."""
    return _SHM_DIR.glob(f"{name}-*")


def _remove_regions(name: str) -> None:
    for region in _regions(name):
        region.unlink(missing_ok=True)


def _require_free(port: int) -> None:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ServerUnavailable(
            f"port {port} of {LOOPBACK} cannot be used ({reason}); stop what listens there or choose another"
        ) from error


def _is_ready(http_port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, http_port, timeout=2.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _text_from(file: Path, position: int) -> str:
    """Return what was written to a file after a position; empty if the file does not exist."""
    try:
        with file.open("rb") as stream:
            stream.seek(position)
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1
