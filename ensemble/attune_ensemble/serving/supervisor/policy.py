"""What is to be done when something has happened: the supervisor's decisions, without any of their effects.

Each method of `Policy` tells it one thing that has happened, at a time in seconds of some clock, and returns what is to
be done about it, in that order. What comes from a server that is gone by now (an older `generation`) is not heeded.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from attune_ensemble.serving.supervisor.times import Times

__all__ = [
    "Action",
    "CloseGuard",
    "Drain",
    "Ending",
    "KillServer",
    "LookAfter",
    "LoseModel",
    "OpenGuard",
    "Phase",
    "Policy",
    "Recover",
    "RegainModel",
    "StartServer",
    "Status",
    "Stop",
    "Tell",
    "WarmUp",
]


class Phase(StrEnum):
    """Where a supervisor is."""

    STARTING = "starting"
    WARMING = "warming"
    SERVING = "serving"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


class Ending(StrEnum):
    """Why a model's process is of no use any more."""

    DIED = "died"
    STOPPED = "stopped"
    SILENT = "silent"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class StartServer:
    """Start a server, in so many seconds; it is the `generation`-th."""

    generation: int
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Ask every model once."""

    generation: int


@dataclass(frozen=True, slots=True)
class OpenGuard:
    """Let requests through."""

    generation: int


@dataclass(frozen=True, slots=True)
class LookAfter:
    """Ask the models now and then while they are idle."""

    generation: int


@dataclass(frozen=True, slots=True)
class CloseGuard:
    """End every request, and refuse new ones."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoseModel:
    """End the requests at a model and at what depends on it, and refuse new ones."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class RegainModel:
    """Let the requests of a model through again."""

    model: str


@dataclass(frozen=True, slots=True)
class Recover:
    """Bring a model back in so many seconds: end its processes, unload it, load it, ask it."""

    model: str
    generation: int
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class KillServer:
    """End the server at once; that it has ended is noticed as ever."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse new requests; what is in flight goes on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End everything; `at_once`: without a grace period."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """An event for the operator."""

    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Action = (
    StartServer
    | WarmUp
    | OpenGuard
    | LookAfter
    | CloseGuard
    | LoseModel
    | RegainModel
    | Recover
    | KillServer
    | Drain
    | Stop
    | Tell
)


@dataclass(frozen=True, slots=True)
class Status:
    """What others may know of a supervisor at some moment; `reason` says why it is not ready, "" where it is."""

    phase: Phase
    reason: str
    lost: tuple[str, ...] = ()
    model_restarts: Mapping[str, int] = field(default_factory=dict)
    server_restarts: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether every request can be answered."""
        return not self.reason

    def serves(self, model: str) -> bool:
        """Whether the processes of a model can answer."""
        return self.phase in (Phase.SERVING, Phase.DRAINING) and model not in self.lost


@dataclass(slots=True)
class _Loss:
    since_s: float
    attempts: int = 0


_REASONS = {
    Phase.STARTING: "starting: the models are being loaded",
    Phase.WARMING: "starting: the models are being warmed up",
    Phase.RESTARTING: "the server ended, and is being started again",
    Phase.DRAINING: "draining: requests in flight are being finished, and no new ones taken",
    Phase.STOPPED: "stopped",
}


class Policy:
    """Decides; for one thread. `failure` says why it gave up, "" where it did not."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._generation = 0
        self._lost: dict[str, _Loss] = {}
        self._model_ends: dict[str, deque[float]] = {}
        self._server_ends: deque[float] = deque()
        self._model_restarts: Counter[str] = Counter()
        self._refuse_from_s = 0.0
        self._drain_until_s = 0.0
        self._is_refusing = False
        self._began_s = 0.0
        self.phase = Phase.STARTING
        self.has_served = False
        self.failure = ""

    @property
    def status(self) -> Status:
        """A picture of now, which does not change any more."""
        reason = _REASONS.get(self.phase, "")
        if self.is_draining and not self._is_refusing:
            reason = "draining: it is about to stop; new requests are still taken, but should go elsewhere"
        if not reason and self._lost:
            reason = f"degraded: model {', '.join(sorted(self._lost))}"
        restarts = max(0, self._generation - 1)
        return Status(self.phase, reason, tuple(sorted(self._lost)), dict(self._model_restarts), restarts)

    @property
    def is_draining(self) -> bool:
        """Whether it waits for what is in flight."""
        return self.phase is Phase.DRAINING

    # Starting

    def begin(self, now_s: float) -> list[Action]:
        """The supervisor begins."""
        self._began_s = now_s
        return [Tell("starting"), self._start(0.0)]

    def _start(self, after_s: float) -> StartServer:
        self._generation += 1
        return StartServer(self._generation, after_s)

    def started(self, generation: int, now_s: float) -> list[Action]:
        """The server runs, and has loaded its models."""
        if self._is_over(generation):
            return []
        self.phase = Phase.WARMING
        return [Tell("warming"), WarmUp(generation)]

    def warmed(self, generation: int, now_s: float) -> list[Action]:
        """Every model has answered."""
        return [] if self._is_over(generation) else [OpenGuard(generation)]

    def opened(self, generation: int, now_s: float) -> list[Action]:
        """The guard lets requests through."""
        self.phase, self.has_served = Phase.SERVING, True
        return [LookAfter(generation), Tell("ready", {"seconds": now_s - self._began_s})]

    def start_failed(self, generation: int, reason: str, now_s: float) -> list[Action]:
        """The server could not be started, or a model did not answer; at the first time there is no second."""
        if self._is_over(generation):
            return []
        if not self.has_served:
            return self._give_up(reason)
        return [KillServer(), *self._server_ended({"reason": reason}, now_s)]

    # Watching

    def looked(
        self, code: int | None, endings: Mapping[str, tuple[Ending, Mapping[str, Any]]], now_s: float
    ) -> list[Action]:
        """The processes were looked at: the server's exit code, None as long as it runs, and what is wrong with the
        processes of models, with what an operator may want to know of it."""
        if self.phase in (Phase.STARTING, Phase.RESTARTING, Phase.STOPPED):
            return []
        if code is not None:
            return self._server_died(code, now_s)
        if self.phase is Phase.WARMING:  # a model that does not answer is noticed
            return []
        return [
            action
            for model, (ending, fields) in endings.items()
            if model not in self._lost
            for action in self._lose(model, ending, fields, now_s)
        ]

    def unresponsive(self, generation: int, model: str, ending: Ending, now_s: float) -> list[Action]:
        """A model does not answer, or fails whatever it is asked."""
        if self._is_over(generation) or self.phase is not Phase.SERVING or model in self._lost:
            return []
        return self._lose(model, ending, {}, now_s)

    def server_unresponsive(self, generation: int, now_s: float) -> list[Action]:
        """The server itself does not answer."""
        if self._is_over(generation) or self.phase is not Phase.SERVING:
            return []
        return [
            Tell("server_unresponsive"),
            CloseGuard("the server does not answer, and is started again"),
            KillServer(),
        ]

    def _lose(self, model: str, ending: Ending, fields: Mapping[str, Any], now_s: float) -> list[Action]:
        self._lost[model] = _Loss(now_s)
        event = "model_died" if ending is Ending.DIED else "model_unresponsive"
        told = {"model": model, "reason": str(ending), **fields}
        actions: list[Action] = [LoseModel(model, _LOSSES[ending].format(model)), Tell(event, told)]
        if self.phase is Phase.DRAINING:  # nobody will ask it any more
            return actions
        ends = self._recent(self._model_ends.setdefault(model, deque()), now_s)
        return [*actions, Recover(model, self._generation, self._wait_s(len(ends) - 1))]

    def recovered(self, generation: int, model: str, now_s: float) -> list[Action]:
        """A model is back, and has answered."""
        if self._is_over(generation) or model not in self._lost:
            return []
        loss = self._lost.pop(model)
        self._model_restarts[model] += 1
        return [RegainModel(model), Tell("model_recovered", {"model": model, "seconds": now_s - loss.since_s})]

    def not_recovered(self, generation: int, model: str, reason: str, now_s: float) -> list[Action]:
        """A model could not be brought back."""
        if self._is_over(generation) or model not in self._lost or self.phase is not Phase.SERVING:
            return []
        loss = self._lost[model]
        loss.attempts += 1
        told = Tell("model_not_recovered", {"model": model, "attempt": loss.attempts, "reason": reason})
        if loss.attempts < self._times.model_attempts:
            return [told, Recover(model, generation, self._wait_s(loss.attempts))]
        return [told, CloseGuard(f"{model} could not be brought back: the server is started again"), KillServer()]

    def _server_died(self, code: int, now_s: float) -> list[Action]:
        if self.phase is Phase.DRAINING:
            gone = {"code": code}
            return [Tell("server_died", gone), CloseGuard("the server ended while it was to stop"), *self._stop()]
        if not self.has_served:
            return self._give_up(f"the server ended with code {code} while its models were warmed up")
        return self._server_ended({"code": code}, now_s)

    def _server_ended(self, fields: Mapping[str, Any], now_s: float) -> list[Action]:
        self.phase = Phase.RESTARTING
        self._lost.clear()
        ends = self._recent(self._server_ends, now_s)
        actions: list[Action] = [Tell("server_died", fields), CloseGuard(_REASONS[self.phase])]
        if len(ends) > self._times.server_attempts:
            return [*actions, *self._give_up(f"the server ended {len(ends)} times")]
        wait_s = self._wait_s(len(ends))
        self._began_s = now_s
        return [*actions, Tell("server_restarting", {"attempt": len(ends), "in_s": wait_s}), self._start(wait_s)]

    # Ending

    def stop_asked(self, in_flight: int, now_s: float) -> list[Action]:
        """Somebody wants it to stop: gracefully the first time, at once the second."""
        if self.phase is Phase.STOPPED:
            return []
        if self.phase is Phase.SERVING:
            self.phase = Phase.DRAINING
            self._refuse_from_s = now_s + self._times.notice_s
            self._drain_until_s = self._refuse_from_s + self._times.drain_s
            self._began_s = now_s
            return [*self._refuse(now_s), Tell("draining", {"in_flight": in_flight})]
        return self._stop(at_once=True)

    def in_flight(self, count: int, now_s: float) -> list[Action]:
        """So many requests are not yet answered."""
        if self.phase is not Phase.DRAINING:
            return []
        if not self._is_refusing:  # who comes in between is counted the next time
            return self._refuse(now_s)
        if count and now_s < self._drain_until_s:
            return []
        return [Tell("drained", {"in_flight": count, "seconds": now_s - self._began_s}), *self._stop()]

    def _refuse(self, now_s: float) -> list[Action]:
        """Take nothing new, when the notice is over."""
        self._is_refusing = now_s >= self._refuse_from_s
        return [Drain()] if self._is_refusing else []

    def _stop(self, *, at_once: bool = False) -> list[Action]:
        self.phase = Phase.STOPPED
        return [Stop(at_once)]

    def _give_up(self, reason: str) -> list[Action]:
        self.failure = reason
        return [Tell("gave_up", {"reason": reason}), *self._stop(at_once=True)]

    def _is_over(self, generation: int) -> bool:
        return generation != self._generation or self.phase in (Phase.DRAINING, Phase.STOPPED)

    def _recent(self, ends: deque[float], now_s: float) -> deque[float]:
        """The ends that are not forgotten, with one now."""
        ends.append(now_s)
        while ends[0] < now_s - self._times.forget_s:
            ends.popleft()
        return ends

    def _wait_s(self, earlier: int) -> float:
        """How long to wait after so many ends before; 0 after none."""
        if not earlier:
            return 0.0
        doubled = self._times.first_wait_s * 2.0 ** min(earlier - 1, 30)
        return min(doubled, self._times.longest_wait_s)


_LOSSES = {
    Ending.DIED: "the process of {} has died; it is being brought back: try again in a few seconds",
    Ending.STOPPED: "the process of {} was stopped; it is being brought back: try again in a few seconds",
    Ending.SILENT: "{} does not answer; it is being brought back: try again in a few seconds",
    Ending.FAILING: "{} fails whatever it is asked; it is being brought back: try again in a few seconds",
}
