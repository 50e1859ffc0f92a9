"""Asks the models of a server: each once before it serves, and those that are idle now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol

from tritonclient.grpc import model_config_pb2

from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)
from attune_client.protocol.tensors import ModelSpec, Tensors
from attune_ensemble.serving.configuration import BrokenRepository
from attune_ensemble.serving.guard.signatures import Signature, needed_by, signature_of
from attune_ensemble.serving.supervisor.policy import Ending
from attune_ensemble.serving.supervisor.probes import Probe, probe_of
from attune_ensemble.serving.supervisor.times import Times

__all__ = ["Asker", "Connection"]

_FAILURES = 3
"""So many failures in a row are a fault of the model, and not of a moment."""

_WORKING = 0.2
"""The part of a core that a model uses which works; one that waits for ever uses none."""

_LONGEST_WORK = 4
"""So many times in a row a model may be at work on something else while it is asked."""


class Connection(Protocol):
    """What is asked of a server: `launcher.control.Control`."""

    def configuration(self, model: str) -> model_config_pb2.ModelConfig:
        """The configuration of a model."""
        ...

    def progress(self) -> Mapping[str, tuple[int, ...]]:
        """Numbers of each model that change when it answers."""
        ...

    def ask(self, model: ModelSpec, inputs: Tensors, timeout_s: float) -> int:
        """Ask a model once."""
        ...


class Asker:
    """Asks the models of one server.

    Args:
        server: the connection to it.
        models: names of its models.
        times: how long each may take, and how often an idle one is asked.
        tell: takes events.
    """

    def __init__(self, server: Connection, models: Collection[str], times: Times, tell: Callable[..., None]) -> None:
        self._server, self._times, self._tell = server, times, tell
        self._models = tuple(models)
        self._signatures: dict[str, Signature] = {}
        self._probes: dict[str, Probe] = {}
        self._failures: Counter[str] = Counter()
        self._at_work: Counter[str] = Counter()

    def warm_up(self) -> None:
        """Learn what the models take, and ask every one once, what others use before what uses it.

        Raises:
            AttuneError: as `warm` does.
        """
        signatures = [signature_of(self._server.configuration(model)) for model in self._models]
        self._signatures = {signature.name: signature for signature in signatures}
        for signature in sorted(signatures, key=lambda each: (len(self.needed_by(each.name)), each.name)):
            if (probe := probe_of(signature)) is not None:
                self._probes[signature.name] = probe
            else:
                self._tell("not_probed", model=signature.name, reason="it is none of the protocol's")
        for model in self._probes:
            self.warm(model)

    def needed_by(self, model: str) -> frozenset[str]:
        """Names of the models that a model may need to answer, as their configurations say."""
        return frozenset(needed_by(model, self._signatures) - {model})

    def warm(self, model: str) -> None:
        """Let a model do one real inference; one that is not known is not asked.

        Raises:
            BrokenRepository: the model fails.
            ServerUnavailable: it does not answer in time, or the server has gone.
        """
        probe = self._probes.get(model)
        if probe is None:
            return
        self._failures[model] = self._at_work[model] = 0  # of the processes that it had before
        try:
            self._server.ask(probe.spec, probe.real, self._times.warm_s)
        except InvalidRequest as error:
            self._tell("probe_refused", model=model, reason=str(error))
        except ServerUnavailable:
            raise
        except RequestTimeout as error:
            raise ServerUnavailable(f"{model} did not answer within {self._times.warm_s:g} s") from error
        except AttuneError as error:
            raise BrokenRepository(f"{model} fails at its first inference: {error}") from error

    def look_after(
        self,
        over: threading.Event,
        is_busy: Callable[[], bool],
        is_away: Callable[[str], bool],
        processor_seconds: Callable[[str], float],
        unresponsive: Callable[[str, Ending], None],
        server_unresponsive: Callable[[], None],
    ) -> None:
        """Ask each idle model now and then until `over`.

        Args:
            over: set when the server is of no interest any more.
            is_busy: whether requests are in flight: then a model is asked what is answered at once, where there is
                such a thing, since it may have much to do.
            is_away: whether a model, or one that it may use, is being brought back.
            processor_seconds: what the processes of a model have used so far: one that does not answer because it works
                is let work, `_LONGEST_WORK` times as long as another would have to answer.
            unresponsive: told of a model that does not answer or always fails.
            server_unresponsive: told when the server itself does not answer.
        """
        before: Mapping[str, tuple[int, ...]] = {}
        while not over.wait(self._times.idle_s):
            now = self._progress()
            if now is None:
                if not over.is_set():
                    server_unresponsive()
                return
            idle = [name for name in self._probes if now.get(name) == before.get(name) and not is_away(name)]
            for name in idle:
                if over.is_set():
                    return
                ending = self._ask_idle(self._probes[name], is_busy(), partial(processor_seconds, name))
                if ending is not None and not over.is_set() and not is_away(name):
                    unresponsive(name, ending)
                    break  # what uses it could not answer either
            before = self._progress() or now

    def _ask_idle(self, probe: Probe, is_busy: bool, processor_seconds: Callable[[], float]) -> Ending | None:
        """What is wrong with an idle model, if anything."""
        name = probe.spec.name
        before = (self._progress() or {}).get(name)
        used_s = processor_seconds()
        inputs = probe.at_once if is_busy and probe.at_once is not None else probe.tiny
        try:
            self._server.ask(probe.spec, inputs, self._times.answer_s)
        except (InvalidRequest, ServerBusy):
            pass
        except RequestTimeout:
            if (self._progress() or {}).get(name) != before:
                self._at_work[name] = 0
                return None
            is_at_work = processor_seconds() - used_s >= _WORKING * self._times.answer_s
            self._at_work[name] += 1
            return None if is_at_work and self._at_work[name] < _LONGEST_WORK else Ending.SILENT
        except ServerUnavailable:  # that the server has ended, or a model is away, is noticed elsewhere
            return None
        except ServerError as error:
            self._failures[name] += 1
            self._tell("probe_failed", model=name, reason=str(error))
            return Ending.FAILING if self._failures[name] >= _FAILURES else None
        self._failures[name] = self._at_work[name] = 0
        return None

    def _progress(self) -> Mapping[str, tuple[int, ...]] | None:
        """None where the server does not answer for `answer_s`."""
        deadline_s = time.monotonic() + self._times.answer_s
        while True:
            try:
                return self._server.progress()
            except AttuneError:
                if time.monotonic() > deadline_s:
                    return None
                time.sleep(self._times.look_s)
