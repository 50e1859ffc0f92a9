"""Connections that come from another address of this machine: gRPC does not let its clients choose theirs."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["relayed"]

_PIECE = 2**16
_CONNECT_S = 10.0


@contextlib.contextmanager
def relayed(url: str, source: str | None) -> Iterator[str]:
    """An address that leads to `url` (`host:port`) by way of the address `source`; `url` itself where that is None."""
    if source is None:
        yield url
        return
    relay = _Relay(url, source)
    try:
        yield relay.url
    finally:
        relay.close()


class _Relay:
    """Hands on what comes over each connection, and what is answered."""

    def __init__(self, url: str, source: str) -> None:
        host, _, port = url.rpartition(":")
        self._target, self._source = (host, int(port)), source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, name="chaos-relay", daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                near = self._listener.accept()[0]
                self._sockets.append(near)
                try:
                    far = socket.create_connection(self._target, _CONNECT_S, source_address=(self._source, 0))
                except OSError:
                    near.shutdown(socket.SHUT_RDWR)
                    continue
                far.settimeout(None)
                self._sockets.append(far)
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=_copy, args=ends, name="chaos-relay", daemon=True))
                    self._threads[-1].start()

    def close(self) -> None:
        """End every connection."""
        _shut_down(self._listener)
        self._accepting.join()
        for each in self._sockets:
            _shut_down(each)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes, until its end; then the target's other half ends, too."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    _shut_down(target)


def _shut_down(each: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        each.shutdown(socket.SHUT_RDWR)
