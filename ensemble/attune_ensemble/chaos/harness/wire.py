"""Messages to the gRPC port as they are, past every check of the client, and errors as the server told them.

with Wire(server.url, patience_s=30) as wire:
    wire.infer(b"no message of the protocol")  # raises InvalidRequest
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2

from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    from_wire,
)

__all__ = ["SERVICE", "Wire"]

SERVICE = "inference.GRPCInferenceService"

_UNLIMITED = -1
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
)

_BY_CODE: dict[grpc.StatusCode, type[AttuneError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequest,  # said by gRPC itself of a message that is too large
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.CANCELLED: RequestCancelled,
}


class Wire:
    """One connection; `patience_s` is how long it waits for the whole of an answer."""

    def __init__(self, url: str, patience_s: float) -> None:
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def infer(self, message: bytes) -> bytes:
        """The answer of a model; raises the `AttuneError` that the server told."""
        return self.ask("ModelInfer", message)

    def ask(self, method: str, message: bytes, service: str = SERVICE) -> bytes:
        """The answer of any method; raises as `infer` does."""
        try:
            answer: bytes = self._channel.unary_unary(f"/{service}/{method}")(message, timeout=self._patience_s)
        except grpc.RpcError as error:
            raise _translated(error) from None
        return answer

    def stream(self, message: bytes) -> Iterator[bytes]:
        """The responses of a model that streams; raises as `infer` does. Leaving it cancels the rest."""
        call = self._channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([message]), timeout=self._patience_s)
        try:
            for response in call:
                if error := _error_message(response):
                    raise from_wire(error)
                yield response
        except grpc.RpcError as error:
            raise _translated(error) from None
        finally:
            call.cancel()


def _error_message(response: bytes) -> str:
    return str(service_pb2.ModelStreamInferResponse.FromString(response).error_message)


def _translated(error: Any) -> AttuneError:
    told = from_wire(error.details() or "")
    if type(told) is not ServerError:
        return told
    kind = _BY_CODE.get(error.code(), ServerError)
    return kind("nothing came" if kind is RequestTimeout else f"{error.code().name}: {error.details()}")
