"""Starts one tritonserver, waits until it is ready, and stops it.

    with Server(Path("model_repository"), log_file=Path("out/server.log")) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

Nobody but this user can reach it: gRPC is a socket in its private folder, HTTP is off, and its metrics are at some port
of the loopback interface. What others reach is in front of it (`serving.guard`, `serving.supervisor`). When whoever
started it is gone, however that ended, the janitor (a small process) ends it and removes what it leaves.

Model control is explicit, so that a model whose process has died can be brought back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.profiles import EMBEDDED, Profile
from attune_ensemble.janitor import Janitor
from attune_ensemble.janitor.cleaning import regions_of
from attune_ensemble.serving.allocation import POOL_SIZE
from attune_ensemble.serving.launcher.control import Control
from attune_ensemble.serving.launcher.layout import (
    ServerLayout,
    ServerPackage,
    find_package,
    image_environment,
    image_layout,
    packaged_layout,
    server_environment,
)
from attune_ensemble.serving.launcher.log_file import open_log
from attune_ensemble.serving.launcher.ports import LOOPBACK, free_port
from attune_ensemble.serving.launcher.processes import Process, processes_of_session, stubs_of_session
from attune_ensemble.serving.own_server import OWN_URL
from attune_ensemble.serving.repository import BrokenRepository, check_repository
from attune_ensemble.serving.scratch import Scratch, clear_abandoned, new_name

__all__ = ["Server"]

_POLL_S = 0.1
_KILL_GRACE_S = 5.0
_UNLOAD_S = 10.0
# The server logs this when no request is in flight any more and only its models have to be unloaded.
_UNLOADING = "All models are stopped, unloading models"
_LOG_LINES = 15
_PREFIX = "attune-serve-"
_PRIVATE = 0o600

# Time limit for loading all models; the server's default, 30 s, is short for a cold disk and two cores.
_MODEL_LOAD_S = 300
_SHORTEST_LOAD_S = 1.0
"""What a model has to load however long it took to unload."""

# Initial size and growth of a stub's shared memory, which is never released.
_SHM_BYTES = 4 * 1024 * 1024

# Triton puts a colon and the port at the end of a socket's path.
_SOCKET, _SOCKET_PORT = "g", 1
_TRITONS_TMP = "/tmp"
_MAX_SOCKET_PATH = 107
"""Longest path of a socket, in bytes (unix(7))."""


class Server:
    """A managed tritonserver process: a context manager that starts it, or fails clearly, and always stops it.

    Args:
        repository: the model repository.
        log_file: log of the server and its models; the previous one is kept as `<name>.1`.
        models: names of the models to load; all if empty.
        exit_timeout_s: time for requests in flight to finish when the server stops.
        profile: the profile that is served: the default one by the packaged server, every other by the one on the PATH.
        go_on_in_log: whether to append to the log: it takes the place of a server that ended.

        `name` is the name of its temporary folder, and the prefix of its shared memory regions.
    """

    def __init__(
        self,
        repository: Path,
        *,
        log_file: Path,
        models: tuple[str, ...] = (),
        exit_timeout_s: int = 30,
        profile: Profile = EMBEDDED,
        go_on_in_log: bool = False,
    ) -> None:
        self.repository = repository.resolve()
        self.profile = profile
        self.name = new_name(_PREFIX)
        self.log_file = log_file.absolute()  # not resolved: /dev/stdout may be a pipe, which has no path
        self._models = models
        self._exit_timeout_s = exit_timeout_s
        self._go_on_in_log = go_on_in_log
        self._metrics_port = 0
        self._is_given_up = False
        self._has_stopped = False
        self._stopping = threading.Lock()
        self._scratch: Scratch | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._janitor: Janitor | None = None

    @property
    def grpc_url(self) -> str:
        """Address of its gRPC, for any client of the same user: `unix:` and a path."""
        assert self._scratch is not None, "the server has not been started"
        return f"unix:{self._scratch.path / _SOCKET}:{_SOCKET_PORT}"

    @property
    def folder(self) -> Path:
        """Its private folder, after which its shared memory is named."""
        assert self._scratch is not None, "the server has not been started"
        return self._scratch.path

    @property
    def metrics_url(self) -> str:
        """`host:port` of its Prometheus metrics."""
        return f"{LOOPBACK}:{self._metrics_port}"

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it serves."""
        return self._models or tuple(sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt")))

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
            BrokenRepository: a model file is missing, or the server ended while it loaded the models.
            ServerUnavailable: no server installed, a log or a temporary folder that cannot be written, the server was
                killed, or it was not ready in time.
        """
        try:
            self._launch()
            self._wait_until_ready()
            self._close_regions()
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        check_repository(self.repository, self._models, self.profile)
        _require_tmp()
        with open_log(self.log_file, go_on=self._go_on_in_log) as log:
            scratch, layout = self._make_scratch()
            environment = self._environment(scratch)
            self._janitor = Janitor(OWN_URL, self.grpc_url, scratch.path)
            self._metrics_port = free_port()
            # A new session: Ctrl-C in the terminal reaches this process only, which stops the server gracefully.
            self._process = subprocess.Popen(
                self._command(layout),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(scratch.lock,),
            )

    def _environment(self, scratch: Scratch) -> dict[str, str]:
        environment = server_environment(os.environ) if self.profile == EMBEDDED else image_environment(os.environ)
        # The models' temporary files are deleted with the server.
        return environment | {"TMPDIR": str(scratch.path / "tmp"), OWN_URL: self.grpc_url}

    def _make_scratch(self) -> tuple[Scratch, ServerLayout]:
        package = find_package() if self.profile == EMBEDDED else None
        try:
            for name in clear_abandoned(_PREFIX):
                _remove_regions(name)
            self._scratch = Scratch(self.name)
            _require_short(self._scratch.path / f"{_SOCKET}:{_SOCKET_PORT}")
            (self._scratch.path / "tmp").mkdir()
            layout = self._layout(package)
        except OSError as error:
            folder = os.environ.get("TMPDIR", "/tmp")
            raise ServerUnavailable(
                f"the temporary folder {folder} cannot be used ({error.strerror}): name another one in TMPDIR"
            ) from error
        return self._scratch, layout

    def _layout(self, package: ServerPackage | None) -> ServerLayout:
        assert self._scratch is not None
        return packaged_layout(self._scratch.path, package, os.environ) if package else image_layout(self.profile)

    def _close_regions(self) -> None:
        """Restrict the shared memory of requests to this user; Triton makes it readable for all, whatever the umask."""
        for region in regions_of(self.name):
            with contextlib.suppress(FileNotFoundError):  # of a model that was unloaded just now
                region.chmod(_PRIVATE)

    def stop(self) -> None:
        """Let requests in flight finish, then end the server and every process that it started."""
        with self._stopping:
            if self._has_stopped:
                return
            self._has_stopped = True  # its process id may be another one's by now
            try:
                if self._process is not None:
                    self._end(self._process)
            finally:
                self._clean_up()

    def kill(self) -> None:
        """End the server and its models at once, from any thread; `stop` is still to be called."""
        self._is_given_up = True  # it may be starting
        process = self._process
        if process is not None and process.poll() is None:
            _kill_group(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        process.terminate()
        try:
            self._await_end(process, before)
        finally:
            # Also after a second Ctrl-C: no stub may be left.
            _kill_group(process)
            process.wait()

    def _clean_up(self) -> None:
        _remove_regions(self.name)
        if self._scratch is not None:
            self._scratch.remove()
        if self._janitor is not None:
            self._janitor.finish()

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

    @property
    def process_id(self) -> int:
        """Process id of the server; its models are in the same session."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    def process_ids(self) -> Iterator[int]:
        """Process ids of the server and its models."""
        return processes_of_session(self._process.pid) if self._process is not None else iter(())

    def stubs(self) -> dict[str, tuple[Process, ...]]:
        """The processes of each model that has any: one for each instance. An ensemble has none."""
        return stubs_of_session(self.process_id, self.models)

    def reload(self, model: str, timeout_s: float = _MODEL_LOAD_S) -> None:
        """Unload a model and load it again, and the ensembles that it is a part of, which are away meanwhile.

        Raises:
            AttuneError: it cannot be unloaded or loaded, or not within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        with Control(self.grpc_url) as control:
            control.unload(model, timeout_s)
            control.load(model, max(_SHORTEST_LOAD_S, deadline_s - time.monotonic()))
        self._close_regions()

    def _command(self, layout: ServerLayout) -> list[str]:
        assert self._scratch is not None
        arguments = {
            "model-repository": self.repository,
            "backend-directory": layout.backend_dir,
            "cache-directory": layout.cache_dir,
            "model-config-name": None if self.profile == EMBEDDED else self.profile.name,
            "model-control-mode": "explicit",
            "allow-http": "false",
            "grpc-address": f"unix:{self._scratch.path / _SOCKET}",
            "grpc-port": _SOCKET_PORT,
            "grpc-infer-allocation-pool-size": POOL_SIZE,
            "metrics-address": LOOPBACK,
            "metrics-port": self._metrics_port,
            "exit-timeout-secs": self._exit_timeout_s,
        }
        command = [str(layout.binary), *(f"--{name}={value}" for name, value in arguments.items() if value is not None)]
        for backend in layout.stub_backends:
            settings = {
                "shm-region-prefix-name": f"{self.name}-",
                "shm-default-byte-size": _SHM_BYTES,
                "shm-growth-byte-size": _SHM_BYTES,
                "stub-timeout-seconds": _MODEL_LOAD_S,
            }
            command += [f"--backend-config={backend},{name}={value}" for name, value in settings.items()]
        return [*command, *(f"--load-model={name}" for name in self._models or ("*",))]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + _MODEL_LOAD_S
        with Control(self.grpc_url) as control:
            while not control.is_ready():
                if self._is_given_up:
                    raise ServerUnavailable("the start of the server was given up")
                if (code := self._process.poll()) is not None:
                    raise self._ended_early(code)
                if time.monotonic() > deadline_s:
                    raise ServerUnavailable(f"the server was not ready after {_MODEL_LOAD_S} s\n{self._log_excerpt()}")
                time.sleep(_POLL_S)

    def _ended_early(self, code: int) -> ServerUnavailable:
        kind = ServerUnavailable if code < 0 else BrokenRepository  # a signal says nothing of the models
        return kind(f"the server ended with code {code} before it was ready\n{self._log_excerpt()}")

    def _log_excerpt(self) -> str:
        if not self.log_file.is_file():  # a device or a pipe cannot be read again
            return f"(the log went to {self.log_file})"
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        # Triton's errors start with E and the month; without a GPU there is always one about the CUDA driver.
        errors = [line for line in lines if line[:2] in {"E0", "E1"} and "CudaDriverHelper" not in line]
        return "\n".join([*(errors or lines)[-_LOG_LINES:], f"(the whole log: {self.log_file})"])


def _require_tmp() -> None:
    """Triton's Python backend makes a folder in /tmp, whatever TMPDIR says, and aborts where it cannot."""
    try:
        Path(tempfile.mkdtemp(prefix="attune-", dir=_TRITONS_TMP)).rmdir()
    except OSError as error:
        raise ServerUnavailable(
            f"the folder {_TRITONS_TMP} cannot be written to ({error.strerror}), and Triton needs it, whatever TMPDIR "
            f"names: with a read-only root, mount a tmpfs there (docker run --tmpfs {_TRITONS_TMP})"
        ) from error


def _require_short(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > _MAX_SOCKET_PATH:
        raise ServerUnavailable(
            f"the path of the server's socket, {path}, has {length} bytes, and a socket's may have {_MAX_SOCKET_PATH}: "
            "name a temporary folder with a shorter path in TMPDIR"
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _remove_regions(name: str) -> None:
    for region in regions_of(name):
        region.unlink(missing_ok=True)


def _text_from(file: Path, position: int) -> str:
    """Return what was written to a file after a position; empty if the file does not exist."""
    try:
        with file.open("rb") as stream:
            stream.seek(position)
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
