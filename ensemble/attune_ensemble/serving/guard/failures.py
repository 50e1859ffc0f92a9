"""How errors are told: those of the server behind the guard to its clients, and each as a status of gRPC."""

from __future__ import annotations

import copy
from typing import NamedTuple, NoReturn, TypeVar

import grpc
import grpc.aio

from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_ensemble.serving.guard.receiving import Context

__all__ = ["Failure", "NotPermitted", "anew", "error_from_rpc", "error_from_text", "failure_of"]

_E = TypeVar("_E", bound=AttuneError)


class NotPermitted(InvalidRequest):
    """What no client may do, whatever it sends."""


_STATUS: tuple[tuple[type[AttuneError], grpc.StatusCode], ...] = (
    (NotPermitted, grpc.StatusCode.PERMISSION_DENIED),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (RequestTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RequestCancelled, grpc.StatusCode.CANCELLED),
    (AttuneError, grpc.StatusCode.INTERNAL),
)
_DEAD = ("Stub process", "is not healthy", "Failed to process the request(s)")
_NO_ROOM = ("shared memory pool size", "shared memory region")
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_AT_FAULT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


class Failure(NamedTuple):
    """How a call is to end: plain data, for an exception holds the frames, and so the messages, that it passed."""

    code: grpc.StatusCode
    text: str
    retry_after_s: int | None = None

    async def abort(self, context: Context) -> NoReturn:
        """End the call with this status, and, where it says so, when to try again."""
        if self.retry_after_s is not None:
            told = context.trailing_metadata() or ()
            context.set_trailing_metadata((*told, ("retry-after", str(self.retry_after_s))))
        await context.abort(self.code, self.text)
        raise AssertionError("abort raises")


def failure_of(error: AttuneError) -> Failure:
    """The status that tells an error."""
    code = next(code for kind, code in _STATUS if isinstance(error, kind))
    return Failure(code, error.to_wire(), error.retry_after_s if isinstance(error, ServerBusy) else None)


def anew(error: _E) -> _E:
    """The same error as one that was never raised.

    An exception that is raised again and again keeps every frame that it passed, with all that these hold.
    """
    return copy.copy(error)


def error_from_rpc(error: grpc.aio.AioRpcError, model: str) -> AttuneError:
    """What a client is told of an error with which the server answered, or of a connection that broke."""
    return error_from_text(error.details() or "", model, lost=error.code() in _GONE, at_fault=error.code() in _AT_FAULT)


def error_from_text(text: str, model: str, *, lost: bool = False, at_fault: bool = False) -> AttuneError:
    """The error that stands in a server's message; one of Triton's own says what it is without its internals."""
    error = from_wire(text)
    if type(error) is not ServerError or text.startswith(f"{ServerError.code}: "):
        return error
    if any(sign in text for sign in _NO_ROOM):
        return ServerUnavailable(
            f"{model} has no room for a request as large as this one: the server's shared memory (/dev/shm) is full; "
            "its operator can give it more (docker run --shm-size)"
        )
    if lost or any(sign in text for sign in _DEAD):
        return ServerUnavailable(f"{model} stopped while it worked on the request; it is started again")
    return InvalidRequest(str(error)) if at_fault else error
