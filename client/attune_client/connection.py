"""The connection of both clients: where it goes, its settings, and what its errors mean."""

from __future__ import annotations

import re
from typing import NamedTuple

import grpc

from attune_client.protocol.checks import check_text, quote
from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    ServerUnreachable,
    from_wire,
)
from attune_client.protocol.foreign_text import without_internals

__all__ = ["CLOSED", "OPTIONS", "Failure", "check_url", "failure_of", "translate"]

CLOSED = "this client is closed"

_UNLIMITED = -1

OPTIONS = (
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    # A host that vanished is noticed 100 s after it was last heard of. Asking more often costs requests: a Triton as
    # it comes takes questions 300 s apart, and ends the connection at the fourth that comes sooner without data of its
    # own in between, so here after six minutes of silence. Attune's own front door takes them every 5 s.
    ("grpc.keepalive_time_ms", 90_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or a minute, whatever the keepalive's is
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that was started again is found within a second, and one that does not answer is given up after five.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
)
"""Settings of a gRPC channel."""


# --- addresses ---

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(\d{1,5})")
_MAX_SOCKET_PATH = 107
"""Longest path of a unix socket, in bytes."""


def check_url(url: str) -> str:
    """Return the address of a server's gRPC: `host:port`, `[IPv6]:port`, or `unix:/path` of a socket.

    Raises:
        InvalidOption: it is none of these.
    """
    url = check_text("url", url)
    if url.startswith(_SCHEMES):
        path = url.removeprefix("unix:").removeprefix("//")
        if url.startswith("unix:") and not 0 < len(path.encode()) <= _MAX_SOCKET_PATH:
            raise InvalidOption(
                f"url: the path of a unix socket has 1 to {_MAX_SOCKET_PATH} bytes, not {len(path.encode())}"
            )
        return url
    found = _HOST_AND_PORT.fullmatch(url)
    if not found or not 0 < int(found[2]) < 2**16:
        raise InvalidOption(
            f"url must be the address of a server's gRPC: host:port, [IPv6]:port or unix:/path, not {quote(url)}"
        )
    return url


# --- errors ---


class Failure(NamedTuple):
    """How a call ended: a status of gRPC, and its text."""

    code: grpc.StatusCode
    details: str

    @property
    def is_timeout(self) -> bool:
        """Whether the time that the call was given here has passed."""
        return self.code is grpc.StatusCode.DEADLINE_EXCEEDED and self.details.lower() == "deadline exceeded"


def failure_of(error: grpc.RpcError) -> Failure:
    """Return the status of an exception that grpc raised."""
    return Failure(error.code(), error.details() or "")


_TOO_LARGE = re.compile(r"(?:received|sent) message larger than max \((\d+) vs\.? (\d+)\)", re.IGNORECASE)
_NO_CONNECTION = re.compile(r"failed to connect|DNS resolution|no such file|timed out resolving", re.IGNORECASE)
_HERE = re.compile(r"locally cancelled|channel closed", re.IGNORECASE)


def translate(failure: Failure, url: str) -> AttuneError:
    """Convert the end of a call to the `AttuneError` that it means; what the server says is more than its status."""
    code, details = failure
    told = from_wire(details)
    if type(told) is not ServerError or details.startswith(f"{ServerError.code}: "):
        return told
    if found := _TOO_LARGE.search(details):
        return _too_large(int(found[1]), int(found[2]))
    match code:
        case grpc.StatusCode.UNAVAILABLE if _NO_CONNECTION.search(details):
            return ServerUnreachable(f"no server answers at {url}, its gRPC address; start one with `attune serve`")
        case grpc.StatusCode.UNAVAILABLE:
            return _lost(url, details)
        case grpc.StatusCode.CANCELLED if _HERE.search(details):
            return RequestCancelled("the request was given up here")
        case grpc.StatusCode.CANCELLED | grpc.StatusCode.ABORTED:  # by a server that ends, or by what is between
            return _lost(url, details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestTimeout("the time for the request passed")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ServerBusy(f"the server at {url} has no room for the request{_said(details)}")
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidRequest(without_internals(details) or "the server takes no such request")
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return InvalidRequest(f"the server at {url} does not permit this{_said(details)}")
        case grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.NOT_FOUND:
            return InvalidRequest(f"what answers at {url} does not serve this; is it an Attune server?{_said(details)}")
        case grpc.StatusCode.UNKNOWN if "stream removed" in details.lower():
            return _lost(url, details)
        case grpc.StatusCode.INTERNAL if "rst_stream" in details.lower():
            return _lost(url, details)
    return told


def _lost(url: str, details: str) -> ServerUnavailable:
    return ServerUnreachable(f"the server at {url} went away before the answer was complete{_said(details)}")


def _too_large(size: int, most: int) -> InvalidRequest:
    return InvalidRequest(
        f"the request has {size / 2**20:,.1f} MiB, and the server takes at most {most / 2**20:,.1f}: send an encoded "
        "recording (FLAC, OGG or MP3), or a shorter one"
    )


def _said(details: str) -> str:
    text = " ".join(without_internals(details).split())
    return f" ({text[:200]})" if text else ""
