"""Bytes that are no request at the gRPC port, and bad requests at the HTTP port."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attune_client.client import AttuneClient
from attune_client.protocol.errors import InvalidRequest, RequestTimeout, ServerError, ServerUnavailable
from attune_ensemble.chaos.harness.calls import Analyse, Outcome, Play, Prompt
from attune_ensemble.chaos.harness.case import Case, Row
from attune_ensemble.chaos.harness.served import Served

__all__ = ["ROWS"]

_PATIENCE_S = 10.0
_SOON_S = 2.0
_MOST_BYTES = 2**20

# --- the gRPC port ---

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _CONTINUATION = 0, 1, 3, 4, 6, 9
_ENDS_HEADERS = 4


# A header of 4,000 bytes that goes into the table of headers (RFC 7541, sections 6.2.1 and 5.1), and a byte that
# stands for it.
_LONG_HEADER = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4_000
_THE_SAME_AGAIN = b"\xbe"

_TRAILERS = b"\x00\x02te\x08trailers"
"""The header without which gRPC resets a call before any service hears of it."""

_INFER_METHOD = b"/inference.GRPCInferenceService/ModelInfer"
_STREAM_METHOD = b"/inference.GRPCInferenceService/ModelStreamInfer"


def _frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(index: int, value: bytes) -> bytes:
    """A header whose name is that of the static table, short and not compressed (RFC 7541, section 6.2.2)."""
    return bytes([index, len(value)]) + value


def _call(stream: int, method: bytes = _INFER_METHOD) -> bytes:
    """The headers of a call of a method."""
    content = _literal(0x0F, b"")[:1] + b"\x10" + bytes([len(b"application/grpc")]) + b"application/grpc"
    headers = b"\x83\x86" + _literal(0x04, method) + _literal(0x01, b"localhost") + content + _TRAILERS
    return _frame(_HEADERS, stream, headers, _ENDS_HEADERS)


def _garbage(chance: random.Random) -> Mapping[str, bytes]:
    """What is sent, by name; each on a connection of its own."""
    begun = _PREFACE + _frame(_SETTINGS)
    streams = range(1, 4_000, 2)
    endless = _frame(_HEADERS, 1, b"\x83") + _frame(_CONTINUATION, 1, b"\x86" * 1_000) * 1_000
    return {
        "nothing": b"",
        "random bytes": chance.randbytes(100_000),
        "HTTP/1.1": b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n",
        "TLS": bytes.fromhex("16030100c8010000c40303") + chance.randbytes(190),
        "a preface alone": _PREFACE,
        "half a preface": _PREFACE[:10],
        "a preface and random bytes": _PREFACE + chance.randbytes(100_000),
        "a frame of 16 MiB": begun + b"\xff\xff\xff" + struct.pack(">BBI", _DATA, 0, 1) + bytes(2**16),
        "frames of kinds that there are not": begun + b"".join(_frame(kind) for kind in range(20, 255)) * 20,
        "100,000 settings": begun + _frame(_SETTINGS, payload=struct.pack(">HI", 4, 1)) * 100_000,
        "100,000 pings": begun + _frame(_PING, payload=bytes(8)) * 100_000,
        "2,000 calls that are reset": begun
        + b"".join(_call(stream) + _frame(_RESET, stream, struct.pack(">I", 8)) for stream in streams),
        "2,000 calls that never go on": begun + b"".join(_call(stream) for stream in streams),
        "2,000 streams that never go on": begun + b"".join(_call(stream, _STREAM_METHOD) for stream in streams),
        "data of no call": begun + _frame(_DATA, 99, bytes(16_000)) * 100,
        "headers without an end": begun + endless,
        "headers that expand": begun + _frame(_HEADERS, 1, _LONG_HEADER + _THE_SAME_AGAIN * 12_000, _ENDS_HEADERS),
        "a stream numbered 0": begun + _frame(_HEADERS, 0, b"\x83\x86", _ENDS_HEADERS),
        "a message that says 4 GiB": begun + _call(1) + _frame(_DATA, 1, b"\0\xff\xff\xff\xff" + bytes(1_000)),
        "a message that says it is compressed": begun + _call(1) + _frame(_DATA, 1, b"\1\0\0\0\4abcd", 1),
    }


@contextlib.contextmanager
def _connected(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_PATIENCE_S) as connection:
        yield connection


def _send(connection: socket.socket, data: bytes) -> None:
    """Send as much as is taken: a server that has heard enough may close at any time, or read no more."""
    connection.settimeout(_SOON_S)
    with contextlib.suppress(OSError):
        connection.sendall(data)


def grpc_garbage(case: Case) -> None:
    """Bytes that are no gRPC; those who ask for something good are served all along, and afterwards."""
    server = case.server()
    kinds = _garbage(random.Random(14))
    with case.unchanged(server), contextlib.ExitStack() as stack:
        for name, data in kinds.items():
            case.check_time()
            _send(stack.enter_context(_connected(server.url)), data)
            good = case.ask(server, Prompt(name=f"prompt beside {name}"))
            case.expect(good.outcome == Outcome.ANSWERED and good.seconds < _PATIENCE_S, str(good))
        for _ in range(50 if case.quick else 300):
            _send(stack.enter_context(_connected(server.url)), _PREFACE)
        ended = case.at_once(server, [Prompt(), Analyse(case.clip), Play()])
        case.all_answered(ended, "beside hundreds of idle connections")


# --- the HTTP port ---


@dataclass(frozen=True, slots=True)
class _Raw:
    """Bytes to the HTTP port; raises what the answer says, and `ServerUnavailable` where the connection was closed."""

    address: str
    name: str
    data: bytes = field(repr=False)

    def __call__(self, client: AttuneClient, heard: object) -> None:
        """Send them, and read the answer."""
        with _connected(self.address) as connection:
            _send(connection, self.data)
            answer = _read(connection)
        status = _status(answer)
        if not 200 <= status < 400:
            told = answer[:300].decode(errors="replace")
            raise InvalidRequest(told) if 400 <= status < 500 or status in (501, 505) else ServerError(told)


def _read(connection: socket.socket) -> bytes:
    """All that comes until the end, or until nothing more does; raises where nothing came at all."""
    connection.settimeout(_PATIENCE_S)
    answer = b""
    try:
        while len(answer) < _MOST_BYTES and (part := connection.recv(65_536)):
            answer += part
            connection.settimeout(_SOON_S)
    except TimeoutError:
        if not answer:
            raise RequestTimeout(f"nothing came for {_PATIENCE_S:g} s") from None
    except OSError:
        pass
    if not answer:
        raise ServerUnavailable("the connection was closed without an answer")
    return answer


_TOLD_IN_WORDS = re.compile(rb"[Ee]rror code: (\d{3})")


def _status(answer: bytes) -> int:
    """The status of an answer; what is no HTTP may be answered without a status line, as in its first version."""
    found = re.match(rb"HTTP/1\.\d (\d{3})\b", answer) or _TOLD_IN_WORDS.search(answer)
    if found is None:
        raise ServerError(f"this is no answer of HTTP: {answer[:60]!r}")
    return int(found[1])


def _request(method: str, path: str, *headers: str, host: str = "127.0.0.1", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_INFER = "/v2/models/music_prompt/infer"
_BRACKETS = b"[" * 50_000 + b"]" * 50_000
_NESTED = b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ' + _BRACKETS + b"}]}"


def _bad_http() -> Mapping[str, bytes]:
    """What nobody should send there, by name: none of it is to be answered as if it were right."""
    chunked = "Transfer-Encoding: chunked"
    return {
        "50,000 brackets as data": _request("POST", _INFER, body=_NESTED),
        "a million brackets": _request("POST", _INFER, body=b"[" * 10**6),
        "nested text to generate": _request("POST", "/v2/models/music_prompt/generate", body=b'{"text":' * 50_000),
        "three million chunks of a byte": _request("POST", _INFER, chunked) + b"1\r\nx\r\n" * 3_000_000 + b"0\r\n\r\n",
        "a chunk of 2^64 bytes": _request("POST", _INFER, chunked) + b"FFFFFFFFFFFFFFFF\r\nx\r\n",
        "a negative length": _request("POST", _INFER, "Content-Length: -1"),
        "two lengths": _request("POST", _INFER, "Content-Length: 1", "Content-Length: 2") + b"xx",
        "a method that there is not": _request("BREW", "/livez"),
        "DELETE": _request("DELETE", "/readyz"),
        "a body to unload": _request("POST", "/v2/repository/models/valence/unload", body=b"{}"),
        "shared memory": _request("POST", "/v2/systemsharedmemory/region/x/register", body=b'{"key": "/x"}'),
        "settings of the log": _request("POST", "/v2/logging", body=b'{"log_file": "/tmp/x"}'),
        "a path out of the folder": _request("GET", "/../../../../etc/passwd"),
        "the same, encoded": _request("GET", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
        "a path with a line in it": _request("GET", "/livez%0d%0aSet-Cookie:x=1/"),
        "a path of a megabyte": _request("GET", "/" + "a" * 10**6),
        "a header of a megabyte": _request("GET", "/none", f"X: {'a' * 10**6}"),
        "10,000 headers": _request("GET", "/none", *(f"X-{number}: 1" for number in range(10_000))),
        "a header without a name": _request("GET", "/none", ": x"),
        "a version that there is not": b"GET /livez HTTP/9.9\r\n\r\n",
        "no HTTP": b"\0\xff\xfe" * 1_000 + b"\r\n\r\n",
        "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190) + b"\r\n\r\n",
        "a foreign host": _request("GET", "/status", host="evil.example"),
        "a foreign host with a port": _request("GET", "/metrics", host="evil.example:8000"),
        "a foreign origin": _request("POST", _INFER, "Origin: http://evil.example", body=b"{}"),
    }


def http_bad(case: Case) -> None:
    """Bad requests at the HTTP port, each refused in time; and the health of the server is told all along."""
    server = case.server()
    _healthy(case, server, "before")
    with case.unchanged(server):
        for name, data in _bad_http().items():
            case.check_time()
            ended = case.ask(server, _Raw(server.http_url, name, data))
            case.expect(ended.outcome == Outcome.ERROR and ended.error != ServerError.__name__, f"not refused: {ended}")
            _healthy(case, server, name)
        _opens_nothing_to_pages(case, server)
        _slow_senders(case, server)
    case.all_answered([case.ask(server, Prompt())], "afterwards")


def _healthy(case: Case, server: Served, when: str) -> None:
    started_s = time.monotonic()
    status, body = server.get("/readyz", _PATIENCE_S)
    case.expect(status == 200, f"/readyz said {status} ({when}): {body[:100]}")
    case.expect(time.monotonic() - started_s < _SOON_S, f"/readyz took its time ({when})")


def _opens_nothing_to_pages(case: Case, server: Served) -> None:
    """A page of another origin may not read what is told here."""
    with _connected(server.http_url) as connection:
        _send(connection, _request("GET", "/status", "Origin: http://evil.example"))
        answer = _read(connection)
    case.expect(b"access-control-allow-origin" not in answer.lower(), "/status may be read by any page")


def _slow_senders(case: Case, server: Served) -> None:
    """Connections that send a header byte by byte, and others that promise a body and send none."""
    count = 50 if case.quick else 200
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            _send(stack.enter_context(_connected(server.http_url)), _promise(10**12))
        slow = [stack.enter_context(_connected(server.http_url)) for _ in range(count)]
        for connection in slow:
            _send(connection, b"GET /livez HTTP/1.1\r\nX")
        for _ in range(3 if case.quick else 10):
            for connection in slow:
                _send(connection, b"-")
            case.pause(1.0)
            _healthy(case, server, f"beside {count} slow senders")


def _promise(length: int) -> bytes:
    return f"POST {_INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{{".encode()


ROWS = (
    Row("grpc-garbage", "bytes that are no gRPC", grpc_garbage, limit_s=240, quick_limit_s=90),
    Row("http-bad", "bad requests at the HTTP port", http_bad, limit_s=240, quick_limit_s=120),
)
