"""Real replicas on this machine, each `attune serve` pinned to one core, and Envoy in front of them."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from attune_client import AttuneClient
from attune_ensemble.chaos.harness.calls import Call, Ended, Tally
from attune_ensemble.chaos.harness.served import START_S, Options, Served
from attune_ensemble.chaos.harness.threads import Load, at_once
from attune_ensemble.serving.launcher.ports import free_ports
from tests.conftest import ROOT
from tests.envoy_process import Envoy

PATIENCE_S = 60.0
NOTICE_S = 6.0
"""Three times as long as Envoy may take to hear that a replica is about to stop."""

_ANSWERED = re.compile(r'^attune_guard_requests_total\{model="(\w+)",outcome="answered"\} (\d+)', re.MULTILINE)
_SERVE = (sys.executable, "-m", "attune_client", "serve", "--log-format", "json")
_POLL_S = 0.1


class Replica:
    """One `attune serve` on one core, with the same two ports whenever it is started."""

    def __init__(self, core: int, logs: Path) -> None:
        self.core, self.ports = core, free_ports()
        self._logs, self._starts = logs, 0
        self._served: Served | None = None

    def launch(self) -> None:
        """Start it, anew where it has ended, and do not wait."""
        if self._served is not None:
            self._served.remove()
        self._starts += 1
        arguments = (
            f"--grpc-port={self.ports.grpc}",
            f"--http-port={self.ports.http}",
            f"--notice-seconds={NOTICE_S}",
            "--trust-client-metadata",
            "--client-share=1",
        )
        log_file = self._logs / f"replica-{self.core}-{self._starts}.log"
        command = ("taskset", "--cpu-list", str(self.core), *_SERVE)
        self._served = Served(Options(ROOT / "model_repository", log_file, arguments, command=command))
        self._served.launch()

    def wait_ready(self) -> None:
        """Wait until it says that it is ready."""
        assert self.served.wait_for("ready", within_s=START_S) is not None, self.served.told
        self.served.note()

    @property
    def served(self) -> Served:
        """The process."""
        assert self._served is not None
        return self._served

    def kill(self) -> float:
        """SIGKILL to it; when that was, of `time.monotonic`."""
        killed_s = self.served.kill_supervisor()
        assert self.served.wait_exit(PATIENCE_S) is not None
        return killed_s

    def restart(self) -> None:
        """Stop it in order, start it anew, and wait until it is ready."""
        assert self.served.terminate(within_s=2 * PATIENCE_S) == 0, self.served.told
        self.launch()
        self.wait_ready()

    def end(self) -> None:
        """Stop it, whatever its state."""
        if self._served is not None:
            self._served.end()

    def answered(self) -> dict[str, int]:
        """How many requests it has answered since it was started, by model."""
        return {model: int(count) for model, count in _ANSWERED.findall(self.served.get("/metrics")[1])}

    def processor_s(self) -> float:
        """Processor time of all its processes so far, in seconds."""
        total = 0.0
        for process in self.served.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


class Fleet:
    """Replicas, one on each of the first cores, and one Envoy in front of them; a context manager."""

    def __init__(self, folder: Path, replicas: int = 2) -> None:
        self.replicas = [Replica(core, folder) for core in range(replicas)]
        self._folder = folder

    def __enter__(self) -> Self:
        try:
            for replica in self.replicas:  # one after the other would take as long, and hold less memory at a time
                replica.launch()
            for replica in self.replicas:
                replica.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for replica in self.replicas:
            replica.end()

    @contextlib.contextmanager
    def envoy(self, name: str, replicas: Sequence[Replica] | None = None) -> Iterator[Envoy]:
        """Envoy in front of these replicas; of all if left out."""
        chosen = self.replicas if replicas is None else replicas
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        with Envoy(folder, [replica.ports for replica in chosen]) as envoy:
            envoy.wait(lambda: envoy.healthy() == len(chosen), PATIENCE_S)
            yield envoy


def ask_all(url: str, calls: Sequence[Call], at_a_time: int) -> list[Ended]:
    """Make all calls over one connection, so many at a time; how each ended."""
    ended: list[Ended] = []
    with AttuneClient(url, timeout_s=PATIENCE_S) as client:
        for first in range(0, len(calls), at_a_time):
            ended += at_once(calls[first : first + at_a_time], client, PATIENCE_S)
    return ended


@contextlib.contextmanager
def load(url: str, calls: Sequence[Call], threads: int) -> Iterator[Tally]:
    """A client that goes on asking while the `with` block lasts; each call is put down in the tally."""
    tally = Tally()
    with (
        AttuneClient(url, timeout_s=PATIENCE_S) as client,
        Load(calls, client, PATIENCE_S, tally.add, threads),
    ):
        yield tally


def until(condition: Callable[[], Any], within_s: float) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(_POLL_S)
