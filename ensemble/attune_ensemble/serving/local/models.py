"""`LocalModels`: the models of an exported repository in this process, without Triton.

    with LocalModels("model_repository") as models:
        answer = models.call("music_prompt", {"text": np.array([b"a quiet evening"], dtype=np.object_)})
        for response in models.call_stream("music_therapy", {"emotion": np.array([b"calm"], dtype=np.object_)}):
            ...

Files, settings, services and checks are those of the server, and so are the answers and the errors; only what a server
is for is missing: several processes, batches of several requests, bounded queues.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tritonclient.grpc.model_config_pb2 import ModelConfig

from attune_client.protocol.checks import check_deadline, quote
from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    InvalidRequest,
    ServerError,
    ServerUnavailable,
)
from attune_client.protocol.inputs import check_inputs
from attune_client.protocol.models import DEADLINE, MODELS
from attune_client.protocol.privacy import NO_TELEMETRY
from attune_client.protocol.profiles import EMBEDDED, profile_named
from attune_client.protocol.tensors import ModelSpec, Tensors, bytes_tensor
from attune_ensemble.call import UNLIMITED, Call, CallContext, CallStream
from attune_ensemble.serving.configuration import read_config
from attune_ensemble.serving.declared import declared_outputs
from attune_ensemble.serving.local.loading import Services
from attune_ensemble.serving.local.running import RunningCalls
from attune_ensemble.serving.repository import check_repository
from attune_ensemble.serving.services import Service, create_service

__all__ = ["LocalModels"]


class LocalModels:
    """The models of an exported repository, each loaded when it is first asked for; safe to use from several threads.

    It sets the variables of the process's environment that switch telemetry off (`protocol.privacy.NO_TELEMETRY`),
    before a model imports its libraries, and leaves them set.

    Args:
        repository: the folder that `attune export` has completed.
        profile: its name: whose models, with whose settings.
        device: where the Python models compute, such as cuda:0; None: on the CPU, in any profile. Some settings of a
            profile for GPUs need one (`compute_type` of `speech_to_text`). ONNX graphs always run on the CPU.

    Raises:
        InvalidOption: there is no such profile.
        ServerUnavailable: the repository is not complete for that profile; it names the command that completes it.
    """

    def __init__(self, repository: Path | str, profile: str = EMBEDDED.name, device: str | None = None) -> None:
        os.environ.update(NO_TELEMETRY)
        self._repository, self._profile, self._device = Path(repository), profile_named(profile), device or "cpu"
        check_repository(self._repository, profile=self._profile)
        self._services = Services(self._load)
        self._running = RunningCalls()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and wait for its end, and give back what the loaded models hold; nothing can be asked then.

        A piece of work that does not look at its context ends by itself, and so does loading a model.
        """
        self._running.end()
        self._services.close()

    def call(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext = UNLIMITED
    ) -> Tensors:
        """Call one model by name and return its outputs by name; this is a `Call`.

        The input `deadline_s` counts as it does for the server, and for loading the model too; of it and the context's
        deadline the sooner one.

        Raises:
            InvalidOption: inputs that are not the model's, or an option out of range; no such model.
            InvalidRequest: what else is wrong with the request, a recording for example; a model that streams; these
                models are closed.
            RequestTimeout, RequestCancelled: as the context says; the latter also when these models are being closed.
            ServerUnavailable: the model cannot be loaded; its cause, if it has one, says why.
            ServerError: a model failed; its cause says why.
        """
        with self._running.counted():
            return self._call(name, inputs, self._running.until_the_end(context))

    def call_stream(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext = UNLIMITED
    ) -> Generator[Tensors, None, None]:
        """Call one model by name and yield its responses as they are made; this is a `CallStream`.

        Closing the generator stops the model. Raises as `call` does, when it is asked for the first response or a later
        one. A model that answers at once yields its one answer.
        """
        return self._running.stream(self._stream(name, inputs, self._running.until_the_end(context)))

    def _call(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], context: CallContext) -> Tensors:
        model = _declaration(name)
        if model.decoupled:
            raise InvalidRequest(f"{name} answers by a stream, and not at once")
        given, context = _received(model, inputs, context)
        service = self._services.get(name, context)
        with _failures_of(name):
            context.check(name)
            outputs = service.answer(given, context=context)
            context.check(name)
            return _as_sent(declared_outputs(model, outputs))

    def _stream(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], context: CallContext
    ) -> Generator[Tensors, None, None]:
        model = _declaration(name)
        if not model.decoupled:
            yield self._call(name, inputs, context)
            return
        given, context = _received(model, inputs, context)
        service = self._services.get(name, context)
        with _failures_of(name):
            context.check(name)
            with contextlib.closing(service.answer(given, context=context)) as responses:
                for outputs in responses:
                    context.check(name)
                    if outputs:
                        yield _as_sent(declared_outputs(model, outputs))

    def _load(self, name: str) -> Service:
        config = read_config(self._repository / name, self._profile)
        folder = self._repository / name / "1"
        kind = config.backend or config.platform
        if kind == "python":
            host = _Host(folder, config, self._device, self._call_from_within, self._stream_from_within)
            return create_service(name, host)
        # ONNX Runtime is imported here, when telemetry has been switched off.
        from attune_ensemble.serving.local.graphs import create_ensemble, create_graph

        if kind == "ensemble":
            return create_ensemble(config, self._call_from_within)
        if kind == "onnxruntime":
            return create_graph(folder, config)
        raise ServerUnavailable(f"{name} runs on {kind} in the profile '{self._profile}', and so only in its server")

    def _call_from_within(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext
    ) -> Tensors:
        return self._call(name, inputs, context.for_stage(name))

    def _stream_from_within(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext
    ) -> Generator[Tensors, None, None]:
        return self._stream(name, inputs, context.for_stage(name))


@dataclass(frozen=True, slots=True)
class _Host:
    """Where a service of `LocalModels` runs; see `services.Host`."""

    folder: Path
    config: ModelConfig
    device: str
    call: Call
    call_stream: CallStream

    @property
    def settings(self) -> dict[str, str]:
        return {name: parameter.string_value for name, parameter in self.config.parameters.items()}

    def publish(self, meanings: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
        """Nobody collects metrics here."""


def _declaration(name: str) -> ModelSpec:
    if name not in MODELS:
        raise InvalidOption(f"there is no model {quote(name)}; the models are {', '.join(MODELS)}")
    return MODELS[name]


def _received(
    model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]], context: CallContext
) -> tuple[Tensors, CallContext]:
    """The tensors of a request, and until when they are worked on; `InvalidOption` where they are not the model's."""
    check_inputs(model, inputs)
    given = _as_sent(inputs)
    return given, _limited(context, given.pop(DEADLINE.name, None))


def _limited(context: CallContext, deadline_s: npt.NDArray[np.float32] | None) -> CallContext:
    """The context with the deadline that the request asks for, if it has one and that is the sooner one."""
    if deadline_s is None:
        return context
    asked = CallContext.within(check_deadline(deadline_s.flat[0])).deadline
    assert asked is not None
    return replace(context, deadline=asked if context.deadline is None else min(asked, context.deadline))


def _as_sent(tensors: Mapping[str, npt.NDArray[Any]]) -> Tensors:
    """The tensors as they arrive by way of a server: text as bytes."""
    return {
        name: bytes_tensor(*array.flat).reshape(array.shape) if array.dtype == np.object_ else array
        for name, array in tensors.items()
    }


@contextlib.contextmanager
def _failures_of(name: str) -> Iterator[None]:
    """Turn an error that nobody foresaw into a `ServerError` with that error as its cause."""
    try:
        yield
    except Exception as error:
        # One without a code of its own is of a library of ours.
        if isinstance(error, AttuneError) and error.code != AttuneError.code:
            raise
        raise ServerError(f"{name} failed: {type(error).__name__}: {error}") from error
