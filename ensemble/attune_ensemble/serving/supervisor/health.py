"""Health over HTTP: whether the supervisor lives, whether every model can be asked, and metrics.

    /livez     /v2/health/live     200 while the supervisor is at work, or else 503
    /readyz    /v2/health/ready    200 while every model is served, or else 503 with the reason
    /status                        the same as JSON, with what has happened so far
    /metrics                       of the server, the guard and the supervisor, for Prometheus

Only these are answered, only to GET and HEAD without a body, and only where the request is for this host: a page in a
browser whose name was made to point here (DNS rebinding) is told nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.serving.launcher.ports import family
from attune_ensemble.serving.supervisor.policy import Status

__all__ = ["Health", "Subject", "is_for_us"]

_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 32
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_LOCALHOST = "localhost"


class Subject(Protocol):
    """Whose health it is."""

    @property
    def status(self) -> Status:
        """How it stands."""
        ...

    def is_alive(self) -> bool:
        """Whether it is at work."""
        ...

    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        ...

    def metrics(self) -> str:
        """Metrics in Prometheus' text format."""
        ...


@dataclass(frozen=True, slots=True)
class _Page:
    status: HTTPStatus
    text: str
    kind: str = _TEXT


class Health:
    """Answers at `host:port` from `start` to `stop`."""

    def __init__(self, host: str, port: int, subject: Subject) -> None:
        self._address, self._subject = (host, port), subject
        self._server: _Server | None = None

    def start(self) -> None:
        """Begin to answer; `ServerUnavailable` if the port cannot be had."""
        host, port = self._address
        try:
            self._server = _Server(self._address, partial(_Handler, pages=_pages(self._subject), bound=host))
        except OSError as error:
            raise ServerUnavailable(
                f"port {port} of {host} cannot be used ({error.strerror}); stop what listens there or choose another"
            ) from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True).start()

    def stop(self) -> None:
        """Give the port back; the second time does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


def _pages(subject: Subject) -> dict[str, Callable[[], _Page]]:
    def live() -> _Page:
        return _page(subject.is_alive(), "alive" if subject.is_alive() else "the supervisor does not work any more")

    def ready() -> _Page:
        status = subject.status
        return _page(status.is_ready, status.reason or "ready")

    def told() -> _Page:
        return _Page(HTTPStatus.OK, json.dumps(_report(subject), indent=2) + "\n", _JSON)

    def metrics() -> _Page:
        return _Page(HTTPStatus.OK, subject.metrics(), _PROMETHEUS)

    return {
        "/livez": live,
        "/v2/health/live": live,
        "/readyz": ready,
        "/v2/health/ready": ready,
        "/status": told,
        "/metrics": metrics,
    }


def _page(is_well: bool, text: str) -> _Page:
    return _Page(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, f"{text}\n")


def _report(subject: Subject) -> dict[str, Any]:
    status = subject.status
    return {
        "alive": subject.is_alive(),
        "ready": status.is_ready,
        "phase": status.phase,
        "reason": status.reason,
        "server_restarts": status.server_restarts,
        "models": {
            model: {"ready": status.serves(model), "restarts": status.model_restarts.get(model, 0)}
            for model in subject.models()
        },
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: Callable[..., _Handler]) -> None:
        self._open: dict[socket.socket, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        self.address_family = family(address[0])
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. Of too many connections the oldest is ended: whoever asks something needs no time."""
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                with contextlib.suppress(OSError):
                    next(iter(self._open)).shutdown(socket.SHUT_RDWR)  # its thread, which waits for more, ends it
                del self._open[next(iter(self._open))]
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and forget the connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody who breaks a connection off is nothing to write about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection: whoever keeps one open holds a place
    timeout = _TIMEOUT_S
    server_version, sys_version = "attune", ""

    def __init__(self, *arguments: Any, pages: dict[str, Callable[[], _Page]], bound: str) -> None:
        self._pages, self._bound = pages, bound
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(self._found())

    def do_HEAD(self) -> None:
        """Answer as to GET, without the text."""
        self._answer(self._found())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return lambda: self._answer(_Page(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD\n"))
        raise AttributeError(name)

    def _found(self) -> _Page:
        if not is_for_us(self.headers.get_all("Host", []), self._bound):
            return _Page(HTTPStatus.MISDIRECTED_REQUEST, "this is another host\n")
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            return _Page(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no body is taken\n")
        page = self._pages.get(self.path.partition("?")[0])
        return page() if page else _Page(HTTPStatus.NOT_FOUND, "there is no such page\n")

    def _answer(self, page: _Page) -> None:
        self.request_version = self.protocol_version  # what names an older one, or none, is answered with headers too
        body = page.text.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is none; as one of HTTP, whatever version it names, and without what it said."""
        self.command = ""
        status = HTTPStatus(code)
        self._answer(_Page(status, f"{status.phrase.lower()}\n"))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Who asks how it is, is no event."""


def is_for_us(hosts: list[str], bound: str) -> bool:
    """Whether the Host headers of a request name this host: loopback, or the address that is listened at.

    Where that is every address of the machine, any address will do, for rebinding works with names. No header at all
    is what no browser sends.
    """
    if len(hosts) != 1:
        return not hosts
    name = _without_port(hosts[0].strip().lower())
    if name in (_LOCALHOST, bound.lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or (_is_any(bound) and not address.is_unspecified)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_any(bound: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(bound).is_unspecified
    return False
