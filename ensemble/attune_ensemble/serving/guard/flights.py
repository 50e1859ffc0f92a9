"""A request in flight: what was handed on, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from attune_client.protocol.errors import AttuneError
from attune_ensemble.serving.guard.admission import Place
from attune_ensemble.serving.guard.failures import anew, error_from_rpc, error_from_text
from attune_ensemble.serving.guard.forwarding import Upstream
from attune_ensemble.serving.guard.measures import Timed
from attune_ensemble.serving.guard.parts import PartedStream, with_lease
from attune_ensemble.serving.guard.receiving import ReaderStalled, Writer
from attune_ensemble.serving.guard.requests import Request
from attune_ensemble.serving.guard.signatures import Signature, needed_by
from attune_ensemble.serving.lease import Lease

__all__ = ["ANSWERED", "Flight"]

ANSWERED = "answered"
_ERROR_TAG = b"\x0a"
"""With it begins a message of a stream that carries an error."""


class Flight:
    """One request that was handed on: `end` ends it with an error, whatever its model does.

    `outcome` is what became of it, where nothing was raised: `ANSWERED`, or the code of the error that its model sent.
    `lingering` is what still goes on of it behind the guard after its end, None where nothing does; `is_dead` says
    that nothing can, for what worked at it is gone. `given` are the names of its
    inputs. `further` is the request for a further part of a stream in parts.
    """

    def __init__(
        self,
        signature: Signature,
        given: frozenset[str],
        message: bytes,
        upstream: Upstream,
        place: Place,
        timed: Timed,
        lease: Lease | None,
        further: Request | None = None,
    ) -> None:
        self.signature, self.place, self.timed = signature, place, timed
        self._given = given
        self.outcome = ANSWERED
        self.lingering: asyncio.Task[None] | None = None
        self.is_dead = False
        self._message, self._upstream, self._lease, self._further = message, upstream, lease, further
        self._has_begun = False
        self._is_over = False
        self._ended: asyncio.Future[AttuneError] = asyncio.get_running_loop().create_future()

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.signature.name

    def needs(self, signatures: Mapping[str, Signature]) -> set[str]:
        """The models that it still needs, its own among them."""
        return needed_by(self.model, signatures, self._given, has_begun=self._has_begun)

    def end(self, error: AttuneError, *, is_dead: bool = False) -> None:
        """End it with an error, if it has not ended."""
        self.is_dead |= is_dead
        if not self._ended.done():
            self._ended.set_result(anew(error))

    async def answer(self) -> bytes:
        """The answer of a model that gives one."""
        call = self._upstream.infer(self._take_message())
        return bytes(await self._wait_for(call, _awaited(call)))

    async def answer_stream(self, writer: Writer) -> None:
        """Hand on the answers of a model that gives many."""
        call = PartedStream(self._ask_for, lambda: not self._is_over)
        await self._wait_for(call, self._pump(call, writer))

    def _ask_for(self, part: int) -> Any:
        """The call for that part of the stream."""
        message = self._take_message()
        if part:
            assert self._further is not None, "only what was asked for in parts goes on so"
            assert self._lease is not None, "what comes in parts has a lease"
            message = with_lease(self._further, self._lease, part)
        return self._upstream.stream(message)

    def _take_message(self) -> bytes:
        message, self._message = self._message, b""
        return message

    async def _wait_for(self, call: Any, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of the work with a call; raises the error by which the request was ended before."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise anew(self._ended.result())
            return working.result()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self.model) from None
        finally:
            self._is_over = True
            if not working.done():
                self._abandon(call, working)
            del working  # it holds the error, whose traceback holds this frame: a circle that lasts

    def _abandon(self, call: Any, working: asyncio.Future[Any]) -> None:
        """Give up the rest: by the lease, where the model looks at one."""
        if self._lease is None:
            call.cancel()
        else:
            self._lease.end()
        self.lingering = self._upstream.linger(call, working)

    async def _pump(self, call: Any, writer: Writer) -> None:
        """Hand on the responses, each when the client has room for it; the model is told how many were.

        What comes after the request is over is dropped.
        """
        count = 0
        async for response in call:
            if self._is_over:
                continue
            try:
                await writer.write(self._without_internals(response))
            except ReaderStalled as error:
                self.end(error)
                continue
            except Exception:  # whatever grpc raises where nobody is there any more
                if not self._is_over:
                    raise
            count += 1
            self.timed.sent(response)
            self._has_begun = True
            if self._lease is not None:
                self._lease.taken(count)

    def _without_internals(self, response: bytes) -> bytes:
        if not response.startswith(_ERROR_TAG):
            return response
        parsed = service_pb2.ModelStreamInferResponse.FromString(response)
        error = error_from_text(parsed.error_message, self.model)
        self.outcome = error.code
        parsed.error_message = error.to_wire()
        return bytes(parsed.SerializeToString())


async def _awaited(call: Any) -> bytes:
    return bytes(await call)
