"""Starts the server, the guard and the health port, and keeps them at work; see `policy` for what it decides.

One thread looks at the processes and does what the policy says. What takes time (starting, warming up, bringing back,
asking an idle model) is done by threads of their own, which tell that one how it went.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attune_client.protocol.errors import AttuneError, ServerUnavailable
from attune_client.protocol.profiles import EMBEDDED, Profile
from attune_ensemble.serving.guard import Guard, GuardSettings
from attune_ensemble.serving.launcher.control import Control
from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports, authority, require_free
from attune_ensemble.serving.launcher.processes import Process, processor_seconds
from attune_ensemble.serving.launcher.server import Server
from attune_ensemble.serving.supervisor.asking import Asker
from attune_ensemble.serving.supervisor.health import Health
from attune_ensemble.serving.supervisor.metrics import exposition
from attune_ensemble.serving.supervisor.notify import Notifier
from attune_ensemble.serving.supervisor.policy import (
    Action,
    CloseGuard,
    Drain,
    Ending,
    KillServer,
    LookAfter,
    LoseModel,
    OpenGuard,
    Policy,
    Recover,
    RegainModel,
    StartServer,
    Status,
    Stop,
    Tell,
    WarmUp,
)
from attune_ensemble.serving.supervisor.times import Times
from attune_ensemble.serving.supervisor.watching import ProcessWatch, kill

__all__ = ["GaveUp", "Supervisor"]

Fact = Callable[[float], list[Action]]
"""Something that has happened, as a call of the policy: it takes the time, and returns what is to be done."""

_TIMES, _GUARD_SETTINGS = Times(), GuardSettings()
_JOIN_S = 5.0
"""How long what is being done may take to see that it is over, before the server is ended with it."""

_FAREWELL_S = 1.0
_POLL_S = 0.02


class GaveUp(ServerUnavailable):
    """The server ended too often, or the supervisor itself failed."""


@dataclass(frozen=True, slots=True)
class _Tenure:
    """One server and what looks after it; `over` is set when it is of no interest any more."""

    generation: int
    server: Server
    watch: ProcessWatch
    control: Control
    asker: Asker
    in_processes: frozenset[str]
    """Names of the models that run in processes of their own."""
    over: threading.Event = field(default_factory=threading.Event)


class Supervisor:
    """Serves a model repository from `start` to `stop`; a context manager.

    Args:
        repository: the model repository.
        ports: where it listens: requests, and health with metrics.
        log_file: log of the server and its models.
        host: the address that it listens at.
        models: names of the models to serve; all if empty.
        profile: the profile that is served.
        times: every time constant.
        guard_settings: bounds of the guard.
        tell: takes events, `tell(event, **fields)`, in any thread.
        notifier: tells a service manager.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports,
        log_file: Path,
        host: str = LOOPBACK,
        models: tuple[str, ...] = (),
        profile: Profile = EMBEDDED,
        times: Times = _TIMES,
        guard_settings: GuardSettings = _GUARD_SETTINGS,
        tell: Callable[..., None] = lambda event, **fields: None,
        notifier: Notifier | None = None,
    ) -> None:
        self.repository = repository.resolve()
        self.log_file = log_file.absolute()  # not resolved: /dev/stdout may be a pipe, which has no path
        self._host, self._ports = host, ports
        self._models, self._profile = models, profile
        self._times, self._tell = times, tell
        self._notifier = notifier or Notifier({})
        self._policy = Policy(times)
        self.status: Status = self._policy.status
        self._inbox: queue.SimpleQueue[Fact] = queue.SimpleQueue()
        self._guard = Guard(authority(host, ports.grpc), guard_settings, tell)
        self._health = Health(host, ports.http, self)
        self._server: Server | None = None
        self._tenure: _Tenure | None = None
        self._workers: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._looked_s = time.monotonic()
        self._error: AttuneError | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # What others may know; from any thread

    @property
    def grpc_url(self) -> str:
        """`host:port` for requests."""
        return authority(self._host, self._ports.grpc)

    @property
    def http_url(self) -> str:
        """`host:port` of health and metrics."""
        return authority(self._host, self._ports.http)

    @property
    def metrics_url(self) -> str:
        """`host:port` of the Prometheus metrics, at /metrics."""
        return self.http_url

    @property
    def process_id(self) -> int:
        """Process id of the server; it changes when the server is started again."""
        assert self._server is not None, "the server has not been started"
        return self._server.process_id

    def process_ids(self) -> Iterator[int]:
        """Process ids of the server and its models."""
        return self._server.process_ids() if self._server is not None else iter(())

    @property
    def folder(self) -> Path:
        """The server's private folder, after which its shared memory is named; another one when it is started again."""
        assert self._server is not None, "the server has not been started"
        return self._server.folder

    @property
    def error(self) -> AttuneError | None:
        """Why it ended by itself; None where it did not."""
        return self._error

    def is_alive(self) -> bool:
        """Whether the supervisor itself is at work; also while it ends, which takes its time."""
        has_looked = time.monotonic() - self._looked_s < self._times.alive_s
        return self._thread.is_alive() and (has_looked or self._stopping.is_set())

    def models(self) -> tuple[str, ...]:
        """Names of the models that are served."""
        return self._server.models if self._server is not None else ()

    def metrics(self) -> str:
        """The metrics of the server, the guard and the supervisor, in Prometheus' text format."""
        url = self._server.metrics_url if self._server is not None else None
        return exposition(url, self._guard.figures(), self.status, self.models())

    # Beginning and ending; from any thread

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> bool:
        """Listen, start the server, and return True when every model has answered, False when told to stop before.

        Raises:
            BrokenRepository: the repository, or a model in it, cannot be served.
            ServerUnavailable: a port in use, no temporary folder, no server that runs here.
        """
        require_free(self._ports.grpc, self._host)
        self._guard.start()
        try:
            self._health.start()
            self._thread.start()
            self._settled.wait()
        except BaseException:
            self.stop()
            raise
        if self._policy.has_served:
            return True
        self.wait()
        if self._error is not None:
            raise self._error
        return False

    def ask_to_stop(self) -> None:
        """Finish what is in flight, and stop; asked a second time, stop at once. May be called in a signal handler."""
        if self._stopping.is_set():
            self._kill_server()  # nothing reads the inbox any more
        self._inbox.put(lambda now_s: self._policy.stop_asked(self._guard.in_flight(), now_s))

    def wait(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def stop(self) -> None:
        """Finish what is in flight, and stop."""
        if self._thread.is_alive():
            self.ask_to_stop()
            self._thread.join()
        else:
            self._close()

    # The thread

    def _run(self) -> None:
        try:
            self._do(self._policy.begin(time.monotonic()))
            while not self._stopping.is_set():
                self._step()
        except BaseException as error:  # nobody else would end the server
            traceback.print_exc(file=sys.stderr)
            self._error = GaveUp(f"the supervisor failed: {error!r}")
            self._tell("gave_up", reason=str(self._error))
            self._end(at_once=True)
        finally:
            self._settled.set()

    def _step(self) -> None:
        with contextlib.suppress(queue.Empty):
            fact = self._inbox.get(timeout=self._times.look_s)
            self._do(fact(time.monotonic()))
        if not self._stopping.is_set():
            self._look(time.monotonic())
        self._looked_s = time.monotonic()
        self._notifier.alive()

    def _look(self, now_s: float) -> None:
        if self._tenure is not None:
            server, watch = self._tenure.server, self._tenure.watch
            if watch.server_is_stopped():
                server.kill()  # it would be aborted, or go on with requests that nobody waits for
            self._do(self._policy.looked(server.exit_code(), watch.endings(), now_s))
        if self._policy.is_draining:
            self._do(self._policy.in_flight(self._guard.in_flight(), now_s))

    def _do(self, actions: list[Action]) -> None:
        self.status = self._policy.status  # before anybody is told
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case StartServer():
                self._work(self._start_server, action)
            case WarmUp():
                self._work(self._warm_up, self._require_tenure())
            case OpenGuard():
                self._open(self._require_tenure())
            case LookAfter():
                self._work(self._look_after, self._require_tenure())
            case CloseGuard():
                self._leave_tenure()
                self._guard.close(ServerUnavailable(action.reason))
            case LoseModel():
                self._guard.lose({action.model}, ServerUnavailable(action.reason))
            case RegainModel():
                self._guard.regain({action.model})
            case Recover():
                self._recover(self._require_tenure(), action)
            case KillServer():
                self._kill_server()
            case Drain():
                self._notifier.stopping()
                self._guard.drain(ServerUnavailable("the server is about to stop, and takes no new requests"))
            case Tell():
                self._announce(action)
            case Stop():
                self._end(at_once=action.at_once)

    def _announce(self, told: Tell) -> None:
        fields = dict(told.fields)
        is_ready = told.event == "ready"
        if is_ready:
            fields |= {"grpc": self.grpc_url, "http": self.http_url, "log": self.log_file, "models": len(self.models())}
            self._notifier.ready()
        self._tell(told.event, **fields)
        self._notifier.status(self.status.reason or "ready")
        if is_ready:
            self._settled.set()

    def _open(self, tenure: _Tenure) -> None:
        try:
            self._guard.open(tenure.server.grpc_url)
        except AttuneError as error:  # it has just ended, or answers nobody
            self._do(self._policy.start_failed(tenure.generation, str(error), time.monotonic()))
        else:
            self._do(self._policy.opened(tenure.generation, time.monotonic()))

    def _require_tenure(self) -> _Tenure:
        assert self._tenure is not None, "there is no server"
        return self._tenure

    def _leave_tenure(self) -> None:
        if self._tenure is not None:
            self._tenure.over.set()

    def _kill_server(self) -> None:
        if self._server is not None:
            self._server.kill()

    def _end(self, *, at_once: bool) -> None:
        self._stopping.set()
        self._notifier.stopping()
        if self._error is None and self._policy.failure:
            kind = GaveUp if self._policy.has_served else ServerUnavailable
            self._error = kind(self._policy.failure)
        self._leave_tenure()
        self._close_guard()
        if at_once:
            self._kill_server()
        self._close()
        self._tell("stopped")

    def _close_guard(self) -> None:
        """Tell everybody who still waits that it is over, and give the port back."""
        self._guard.close(ServerUnavailable("the server has stopped"))
        deadline_s = time.monotonic() + _FAREWELL_S
        while self._guard.in_flight() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        self._guard.stop()

    def _close(self) -> None:
        """Give everything back that is held; the second time does nothing."""
        self._stopping.set()
        self._guard.stop()
        if self._tenure is not None:
            self._tenure.control.close()  # what a model is being asked ends
        deadline_s = time.monotonic() + _JOIN_S
        for worker in self._workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        if self._server is not None:
            self._server.stop()
        self._health.stop()

    # In threads of their own, which tell how it went

    def _work(self, function: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self._inbox.put(partial(_raise, error))

        worker = threading.Thread(target=run, name=function.__name__, daemon=True)
        self._workers = [*(each for each in self._workers if each.is_alive()), worker]
        worker.start()

    def _start_server(self, action: StartServer) -> None:
        if self._stopping.wait(action.after_s):
            return
        if self._server is not None:
            self._server.stop()  # it has ended; what it leaves is removed
        server = self._server = Server(
            self.repository,
            log_file=self.log_file,
            models=self._models,
            exit_timeout_s=self._times.unload_s,
            profile=self._profile,
            go_on_in_log=action.generation > 1,
        )
        if self._stopping.is_set():
            return
        try:
            server.start()
        except AttuneError as error:
            self._inbox.put(partial(self._on_failed, action.generation, error))
        except OSError as error:
            told = ServerUnavailable(f"the server could not be started: {error}")
            self._inbox.put(partial(self._on_failed, action.generation, told))
        else:
            self._inbox.put(partial(self._on_started, action.generation, server))

    def _on_started(self, generation: int, server: Server, now_s: float) -> list[Action]:
        try:
            watch, stubs = ProcessWatch(server.process_id, self._times.stopped_s), server.stubs()
        except OSError as error:
            return self._on_failed(
                generation, ServerUnavailable(f"the server's processes cannot be seen: {error}"), now_s
            )
        watch.expect(stubs)
        control = Control(server.grpc_url)
        asker = Asker(control, server.models, self._times, self._tell)
        if self._tenure is not None:
            self._tenure.control.close()
        self._tenure = _Tenure(generation, server, watch, control, asker, frozenset(stubs))
        return self._policy.started(generation, now_s)

    def _on_failed(self, generation: int, error: AttuneError, now_s: float) -> list[Action]:
        if not self._policy.has_served and not self._stopping.is_set():
            self._error = error
        return self._policy.start_failed(generation, str(error), now_s)

    def _warm_up(self, tenure: _Tenure) -> None:
        try:
            tenure.asker.warm_up()
        except AttuneError as error:
            self._inbox.put(partial(self._on_failed, tenure.generation, error))
        else:
            self._inbox.put(partial(self._policy.warmed, tenure.generation))

    def _look_after(self, tenure: _Tenure) -> None:
        def unresponsive(model: str, ending: Ending) -> None:
            self._inbox.put(partial(self._policy.unresponsive, tenure.generation, model, ending))

        tenure.asker.look_after(
            tenure.over,
            is_busy=lambda: self._guard.in_flight() > 0,
            is_away=lambda model: self._is_away({model} | tenure.asker.needed_by(model)),
            processor_seconds=lambda model: _processor_seconds(tenure.watch.processes_of(model)),
            unresponsive=unresponsive,
            server_unresponsive=lambda: self._inbox.put(partial(self._policy.server_unresponsive, tenure.generation)),
        )

    def _is_away(self, models: Collection[str]) -> bool:
        return not set(models).isdisjoint(self.status.lost)

    def _recover(self, tenure: _Tenure, action: Recover) -> None:
        with contextlib.suppress(OSError):  # one that cannot be seen is tried again below
            kill(tenure.watch.processes_of(action.model))
        tenure.watch.forget(action.model)
        self._work(self._bring_back, tenure, action)

    def _bring_back(self, tenure: _Tenure, action: Recover) -> None:
        if tenure.over.wait(action.after_s):
            return
        model, server = action.model, tenure.server
        try:
            kill(server.stubs().get(model, ()))  # that it had when it was brought back in vain
            server.reload(model, self._times.load_s)
            while self._is_away(tenure.asker.needed_by(model)) and not tenure.over.wait(self._times.look_s):
                pass  # what it calls died as well: it could not answer
            tenure.asker.warm(model)
            processes = _require_processes(server, model, model in tenure.in_processes)
        except (AttuneError, OSError) as error:
            self._inbox.put(partial(self._policy.not_recovered, tenure.generation, model, str(error)))
        else:
            self._inbox.put(partial(self._on_recovered, tenure, model, processes))

    def _on_recovered(self, tenure: _Tenure, model: str, processes: tuple[Process, ...], now_s: float) -> list[Action]:
        tenure.watch.expect({model: processes})
        return self._policy.recovered(tenure.generation, model, now_s)


def _require_processes(server: Server, model: str, has_some: bool) -> tuple[Process, ...]:
    """The processes of a model; `ServerUnavailable` where it should have some, and has none any more."""
    processes = server.stubs().get(model, ())
    if has_some and not processes:
        raise ServerUnavailable(f"the process of {model} ended as soon as it had answered")
    return processes


def _processor_seconds(processes: Collection[Process]) -> float:
    with contextlib.suppress(OSError):
        return sum(map(processor_seconds, processes))
    return 0.0


def _raise(error: BaseException, now_s: float) -> list[Action]:
    raise error
