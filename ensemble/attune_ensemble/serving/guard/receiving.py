"""Receiving messages, and sending them, from and to clients that may do so slowly or never.

The handlers of unary methods are gRPC's of a stream of requests, too: such a handler asks for the message, and until it
does, gRPC receives no more than a flow control window of it. The handler of a single request gets it whole, however
long that takes and however many of them come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
import grpc.aio

from attune_client.protocol.errors import RequestTimeout

__all__ = ["Context", "ReaderStalled", "Reception", "Writer"]

Context = Any
"""What grpc.aio hands to a handler: a `ServicerContext`, which has no types of its own."""


class ReaderStalled(RequestTimeout):
    """The client has read nothing of its answer for too long."""


class Reception:
    """The next message of a call, which is received from now on."""

    def __init__(self, context: Context) -> None:
        self._reading = _started(context.read())

    async def is_complete(self, within_s: float) -> bool:
        """Whether it has come in that time; its end counts as one."""
        await asyncio.wait({self._reading}, timeout=within_s)
        return self._reading.done()

    async def is_complete_during(self, working: Collection[asyncio.Future[Any]]) -> bool:
        """Whether it has come while anything of that was at work; the collection may change meanwhile."""
        while working and not self._reading.done():
            await asyncio.wait({self._reading, *working}, return_when=asyncio.FIRST_COMPLETED)
        return self._reading.done()

    def message(self) -> bytes | None:
        """The message that has come; None where there are no more of them."""
        message = self._reading.result()
        return None if message is grpc.aio.EOF else bytes(message)


def _started(operation: Any) -> asyncio.Future[Any]:
    """An operation of gRPC, which is never cancelled: it ends with its call, and then nobody looks at it."""
    task = asyncio.ensure_future(operation)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Writer:
    """Sends the responses of a stream, one after the other, each when the client has room for it."""

    def __init__(self, context: Context, within_s: float) -> None:
        self._context, self._within_s = context, within_s
        self._writing = asyncio.Lock()
        self._stalled = False

    async def write(self, response: bytes) -> None:
        """Send a response; `ReaderStalled` if the client had no room for it, or for one before it, in time."""
        async with self._writing:
            if not self._stalled:
                writing = _started(self._context.write(response))
                await asyncio.wait({writing}, timeout=self._within_s)
                self._stalled = not writing.done()
            if self._stalled:
                raise ReaderStalled(f"nothing of the answer was read for {self._within_s:g} s")
            writing.result()
