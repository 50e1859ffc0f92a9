"""A replica without models, in a process of its own, so that it can be killed: the real guard and health port in front
of `FakeUpstream`: `python -m tests.fake_replica GRPC_PORT HTTP_PORT`.

It says `begun` on standard output, and does what the lines of standard input say, each of which it repeats when it is
done: `unready`, `ready` (what /readyz says), `drain` (new requests are refused), `release` (what waits is let go).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.serving.guard import Guard, GuardSettings
from attune_ensemble.serving.launcher.ports import LOOPBACK
from attune_ensemble.serving.supervisor.health import Health
from attune_ensemble.serving.supervisor.metrics import exposition
from attune_ensemble.serving.supervisor.policy import Phase, Status
from tests.fake_upstream import FakeUpstream

STATUS = {"ready": Status(Phase.SERVING, ""), "unready": Status(Phase.DRAINING, "draining: about to stop")}


class Subject:
    """Whose health the port tells."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.status = STATUS["ready"]

    def is_alive(self) -> bool:
        return True

    def models(self) -> tuple[str, ...]:
        return ()

    def metrics(self) -> str:
        return exposition(None, self._guard.figures(), self.status, self.models())


def main(grpc_port: int, http_port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="replica-") as folder:
        upstream = FakeUpstream(Path(folder))
        guard = Guard(
            f"{LOOPBACK}:{grpc_port}", GuardSettings(trust_client_metadata=True), lambda event, **fields: None
        )
        guard.start()
        guard.open(upstream.url)
        subject = Subject(guard)
        health = Health(LOOPBACK, http_port, subject)
        health.start()
        print("begun", flush=True)
        for line in sys.stdin:
            obey(line.strip(), upstream, guard, subject)
            print(line.strip(), flush=True)
        upstream.release.set()
        health.stop()
        guard.stop()
        upstream.close()


def obey(order: str, upstream: FakeUpstream, guard: Guard, subject: Subject) -> None:
    if order in STATUS:
        subject.status = STATUS[order]
    elif order == "drain":
        guard.drain(ServerUnavailable("the server is about to stop, and takes no new requests"))
    elif order == "release":
        upstream.release.set()
    else:
        raise ValueError(order)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
