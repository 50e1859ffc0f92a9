"""The server behind the guard: its models' signatures, and requests handed on to it as the bytes that they came as."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from attune_client.protocol.errors import AttuneError, InvalidRequest, ServerError, ServerUnavailable, from_wire
from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import Signature, signature_of

__all__ = ["SERVICE", "Upstream", "raised"]

SERVICE = "inference.GRPCInferenceService"

_UNLIMITED = -1
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.use_local_subchannel_pool", 1),
)

Stream = Any
"""A call of grpc.aio that yields messages of bytes."""


class Upstream:
    """A connection to one tritonserver, for the event loop on which it was made."""

    def __init__(self, url: str, settings: GuardSettings) -> None:
        self.url = url
        self._settings = settings
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._lingering: set[asyncio.Future[Any]] = set()

    async def signatures(self) -> dict[str, Signature]:
        """The signature of every model that is ready."""
        answer = await self.ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True).SerializeToString())
        index = service_pb2.RepositoryIndexResponse.FromString(answer)
        return {model.name: await self._signature(model.name, model.version) for model in index.models}

    async def _signature(self, name: str, version: str) -> Signature:
        answer = await self.ask("ModelConfig", service_pb2.ModelConfigRequest(name=name).SerializeToString())
        return signature_of(service_pb2.ModelConfigResponse.FromString(answer).config, version)

    async def ask(self, method: str, message: bytes) -> bytes:
        """The answer to a question about the server or its models; `grpc.aio.AioRpcError` as it comes."""
        return await self._method("unary_unary", method)(message, timeout=self._settings.answer_s)

    def infer(self, message: bytes) -> Any:
        """A call that is awaited for the answer."""
        return self._method("unary_unary", "ModelInfer")(message)

    def stream(self, message: bytes) -> Stream:
        """A call with one request, that yields its responses."""

        async def only() -> AsyncIterator[bytes]:
            yield message

        return self._method("stream_stream", "ModelStreamInfer")(only())

    def _method(self, kind: str, name: str) -> Any:
        return getattr(self._channel, kind)(f"/{SERVICE}/{name}")

    def linger(self, call: Any, working: asyncio.Future[Any]) -> None:
        """Let a call that nobody needs any more, and the work with it, end by themselves; cancel what does not.

        A request whose call is cancelled at the moment of its end is now and then never released by Triton 2.51, which
        then cannot unload its model.
        """
        task = asyncio.ensure_future(self._linger(call, working))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _linger(self, call: Any, working: asyncio.Future[Any]) -> None:
        await asyncio.wait({working}, timeout=self._settings.linger_s)
        call.cancel()  # does nothing to one that has ended
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # nobody else looks at it

    async def close(self) -> None:
        """End every call and the connection."""
        await self._channel.close()


_DEAD = ("Stub process", "is not healthy", "Failed to process the request(s)")
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def raised(error: grpc.aio.AioRpcError, model: str) -> AttuneError:
    """What a client is told of an error with which the server answered, or of a connection that broke."""
    return answered(error.details() or "", model, lost=error.code() in _GONE, at_fault=error.code() in _AT_FAULT)


_AT_FAULT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


def answered(text: str, model: str, *, lost: bool = False, at_fault: bool = False) -> AttuneError:
    """The error that stands in a server's message; one of Triton's own says what it is without its internals."""
    error = from_wire(text)
    if type(error) is not ServerError or text.startswith(f"{ServerError.code}: "):
        return error
    if lost or any(sign in text for sign in _DEAD):
        return ServerUnavailable(f"{model} stopped while it worked on the request; it is started again")
    return InvalidRequest(str(error)) if at_fault else error
