"""The guard as its supervisor sees it: an event loop of its own in a thread, spoken to from any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import grpc
import grpc.aio

from attune_client.protocol.errors import AttuneError, ServerUnavailable
from attune_ensemble.serving.guard.failures import error_from_rpc
from attune_ensemble.serving.guard.forwarding import Upstream
from attune_ensemble.serving.guard.refusals import Tell
from attune_ensemble.serving.guard.service import Service
from attune_ensemble.serving.guard.settings import GuardSettings

__all__ = ["Guard"]

_T = TypeVar("_T")
_START_S = 10.0
_STOP_S = 5.0
_FIGURES_S = 5.0
_LAST_BYTES_S = 1.0
"""For what was answered just now to reach its client."""

_CALLS_IN_ALL = 2
"""How many times `max_calls` there may be of any kind: more are refused by gRPC, without a word of ours."""

_WINDOW_BYTES = 2**18
"""What a call may send before anybody asks for its message; most recordings are smaller."""


class Guard:
    """Listens at `address` (`host:port`; `[host]:port` of IPv6) from `start` to `stop`; safe to use from any thread.

    `tell(event, **fields)` takes what an operator may want to know.
    """

    def __init__(self, address: str, settings: GuardSettings, tell: Tell) -> None:
        self.address = address
        self._settings, self._tell = settings, tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Event | None = None
        self._service: Service | None = None
        self._upstream: Upstream | None = None

    def start(self) -> None:
        """Bind the port and answer; every request is refused until `open`.

        Raises:
            ServerUnavailable: the port cannot be had.
        """
        begun: list[BaseException | None] = []
        ready = threading.Event()

        def tell_begun(error: BaseException | None) -> None:
            begun.append(error)
            ready.set()

        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(tell_begun)), name="guard", daemon=True)
        self._thread.start()
        if not ready.wait(_START_S):
            raise ServerUnavailable(f"the guard did not begin to listen at {self.address}")
        if begun[0] is not None:
            raise ServerUnavailable(
                f"{self.address} cannot be listened at (the port is in use, or not ours to use): stop what listens "
                "there or choose another port"
            ) from begun[0]

    async def _run(self, tell_begun: Callable[[BaseException | None], None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._service = Service(self._settings, self._tell)
        server = grpc.aio.server(
            options=_options(self._settings), maximum_concurrent_rpcs=_CALLS_IN_ALL * self._settings.max_calls
        )
        server.add_generic_rpc_handlers((self._service,))
        try:
            if not server.add_insecure_port(self.address):
                raise OSError(f"{self.address} cannot be bound")
            await server.start()
        except (OSError, RuntimeError) as error:
            tell_begun(error)
            return
        tell_begun(None)
        await self._stopping.wait()
        await server.stop(grace=_LAST_BYTES_S)
        if self._upstream is not None:
            await self._upstream.close()

    def open(self, url: str) -> None:
        """Read what every model of the server at `url` declares, and forward requests to it from now on.

        Raises:
            ServerUnavailable: it cannot be reached.
        """
        self._await(self._open(url))

    async def _open(self, url: str) -> None:
        upstream, before = Upstream(url, self._settings), self._upstream
        try:
            signatures = await upstream.signatures()
        except grpc.aio.AioRpcError as error:
            await upstream.close()
            raise ServerUnavailable(
                f"the server cannot be asked what it serves: {error_from_rpc(error, 'it')}"
            ) from error
        self._upstream = upstream
        self._running().open(upstream, signatures)
        if before is not None:
            await before.close()

    def close(self, error: AttuneError) -> None:
        """The server is gone: everything in flight ends with `error`, and new requests are told it."""
        self._call(lambda service: service.close(error))

    def lose(self, models: Collection[str], error: AttuneError) -> None:
        """These models are away: requests in flight that need one of them end with `error`, and new ones are told it,
        until `regain`."""
        self._call(lambda service: service.lose(models, error))

    def regain(self, models: Collection[str]) -> None:
        """These models are back."""
        self._call(lambda service: service.regain(models))

    def drain(self, error: AttuneError) -> None:
        """New requests are told `error`; what is in flight goes on."""
        self._call(lambda service: service.refuse(error))

    def in_flight(self) -> int:
        """Requests that are not yet answered."""
        return self._call(lambda service: service.in_flight)

    def figures(self) -> dict[str, float]:
        """Samples for Prometheus, by name and labels; none where it has been stopped."""
        if self._thread is None:
            return {}
        try:
            return self._call(lambda service: service.figures(), _FIGURES_S)
        except (RuntimeError, TimeoutError, CancelledError):  # it stops at this moment
            return {}

    def stop(self) -> None:
        """End every call and give the port back; the second time does nothing."""
        thread, self._thread = self._thread, None
        if thread is None or not thread.is_alive():
            return
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            loop.call_soon_threadsafe(stopping.set)
        thread.join(_STOP_S)

    def _running(self) -> Service:
        assert self._service is not None, "the guard has not been started"
        return self._service

    def _call(self, function: Callable[[Service], _T], timeout_s: float | None = None) -> _T:
        async def call() -> _T:
            return function(self._running())

        return self._await(call(), timeout_s)

    def _await(self, work: Coroutine[Any, Any, _T], timeout_s: float | None = None) -> _T:
        assert self._loop is not None, "the guard has not been started"
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)
        except RuntimeError:
            work.close()  # the loop is closed, and nobody will await it
            raise


def _options(settings: GuardSettings) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # or a second server could take half of the connections
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.connection_calls),
        # Of what nobody has asked for yet gRPC keeps one window for each call; by itself it makes windows of megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        # Whoever vanished without a word is noticed; clients may look for us alike.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # or who sends nothing is asked twice, and never again
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    )
