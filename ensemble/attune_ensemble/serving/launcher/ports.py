"""The ports that `attune serve` listens on."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from attune_client.protocol.errors import ServerUnavailable

__all__ = ["LOOPBACK", "Ports", "authority", "family", "free_port", "free_ports", "require_free"]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """The two ports: of requests (gRPC), and of health and metrics (HTTP)."""

    http: int = 8000
    grpc: int = 8001


def authority(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an address of IPv6, which has colons of its own."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family(host: str) -> socket.AddressFamily:
    """Return the kind of sockets that can listen at an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_ports(host: str = LOOPBACK) -> Ports:
    """Return two currently free ports; raises `ServerUnavailable` if the address is none of this machine."""
    try:
        with _listening(host) as http, _listening(host) as grpc:
            return Ports(http.getsockname()[1], grpc.getsockname()[1])
    except OSError as error:
        raise ServerUnavailable(f"nothing can listen at {host} ({os.strerror(error.errno or 0).lower()})") from error


def free_port() -> int:
    """Return a currently free port of the loopback interface."""
    return free_ports().http


def require_free(port: int, host: str = LOOPBACK) -> None:
    """Raise `ServerUnavailable` if nothing can listen on that port."""
    try:
        _listening(host, port).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ServerUnavailable(
            f"port {port} of {host} cannot be used ({reason}); stop what listens there or choose another"
        ) from error


def _listening(host: str, port: int = 0) -> socket.socket:
    return socket.create_server((host, port), family=family(host))
