"""What is asked of a tritonserver of one's own: whether it is ready, its statistics, to unload and to load a model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from attune_client.messages import infer_request
from attune_client.protocol.errors import AttuneError, RequestTimeout, ServerUnavailable, from_wire
from attune_client.protocol.tensors import ModelSpec
from attune_ensemble.serving.own_server import CHANNEL_OPTIONS

__all__ = ["Control"]

_ANSWER_S = 10.0
_POLL_S = 0.05
_IMPATIENT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100))


class Control:
    """A connection to the server at `url`; a context manager, and safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url, options=(*CHANNEL_OPTIONS, *_IMPATIENT))
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that go on end with an error."""
        self._channel.close()

    def is_ready(self) -> bool:
        """Whether the server answers, with every model that was to be loaded."""
        with contextlib.suppress(AttuneError), _told("the server"):
            return bool(self._server.ServerReady(service_pb2.ServerReadyRequest(), timeout=_ANSWER_S).ready)
        return False

    def progress(self) -> dict[str, tuple[int, ...]]:
        """For each model that is loaded, numbers that change whenever it has answered something.

        Raises:
            ServerUnavailable: the server does not answer.
        """
        with _told("the server"):
            answer = self._server.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=_ANSWER_S)
        return {each.name: _progress(each) for each in answer.model_stats}

    def configuration(self, model: str) -> model_config_pb2.ModelConfig:
        """The configuration of a model, complete.

        Raises:
            AttuneError: the server does not answer, or has no such model.
        """
        with _told(model):
            request = service_pb2.ModelConfigRequest(name=model)
            answer = self._server.ModelConfig(request, timeout=_ANSWER_S)
        return answer.config

    def unload(self, model: str, timeout_s: float) -> None:
        """Take a model out of service, and the ensembles that it is a part of, and wait until it is.

        Raises:
            AttuneError: the server did not answer, or does not do it.
            RequestTimeout: not within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        with _told(model):
            self._server.RepositoryModelUnload(
                service_pb2.RepositoryModelUnloadRequest(model_name=model), timeout=timeout_s
            )
        while self.is_model_ready(model):
            if time.monotonic() > deadline_s:
                raise RequestTimeout(f"{model} was not unloaded within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def load(self, model: str, timeout_s: float) -> None:
        """Load a model, and the ensembles that it is a part of; returns when they are ready.

        Raises:
            AttuneError: it cannot be loaded, or was not within `timeout_s`.
        """
        with _told(model):
            self._server.RepositoryModelLoad(
                service_pb2.RepositoryModelLoadRequest(model_name=model), timeout=timeout_s
            )

    def is_model_ready(self, model: str) -> bool:
        """Whether the server has the model in service; it says so of a model whose process has died as well."""
        with contextlib.suppress(AttuneError), _told(model):
            return bool(self._server.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=_ANSWER_S).ready)
        return False

    def ask(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float) -> int:
        """Send one request, and return how many responses came until it was answered.

        Raises:
            AttuneError: what the model answered.
            RequestTimeout: it did not answer within `timeout_s`.
            ServerUnavailable: the server could not be reached.
        """
        count = 0
        with _told(model.name):
            call = self._server.ModelStreamInfer(iter([infer_request(model, inputs)]), timeout=timeout_s)
            for response in call:
                if response.error_message:
                    raise from_wire(response.error_message)
                count += 1
        return count


def _progress(each: Any) -> tuple[int, ...]:
    stats = each.inference_stats
    streamed = sum(part.success.count + part.fail.count for part in each.response_stats.values())
    return (each.inference_count, each.execution_count, stats.success.count, stats.fail.count, streamed)


@contextlib.contextmanager
def _told(who: str) -> Iterator[None]:
    """Errors of gRPC as ours; `who` is named in them."""
    try:
        yield
    except grpc.RpcError as error:
        raise _of(error, who) from None
    except ValueError as error:  # gRPC's, where the connection was closed
        raise ServerUnavailable(f"{who} cannot be reached: {error}") from None


def _of(error: Any, who: str) -> AttuneError:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestTimeout(f"{who} did not answer in time")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ServerUnavailable(f"{who} cannot be reached")
    return from_wire(error.details() or "")
