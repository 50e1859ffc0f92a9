"""The server behind the guard: its models' signatures, and requests handed on to it as the bytes that they came as."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import Signature, signature_of

__all__ = ["SERVICE", "Upstream"]

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
        self._lingering: set[asyncio.Task[None]] = set()

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

    def linger(self, call: Any, working: asyncio.Future[Any]) -> asyncio.Task[None]:
        """Let a call that nobody needs any more, and the work with it, end by themselves; cancel what does not.

        The task that is returned ends with them.

        A request whose call is cancelled at the moment of its end is now and then never released by Triton 2.51, which
        then cannot unload its model.
        """
        task = asyncio.ensure_future(self._linger(call, working))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)
        return task

    async def _linger(self, call: Any, working: asyncio.Future[Any]) -> None:
        await asyncio.wait({working}, timeout=self._settings.linger_s)
        call.cancel()  # does nothing to one that has ended
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # nobody else looks at it

    async def close(self) -> None:
        """End every call and the connection."""
        await self._channel.close()
