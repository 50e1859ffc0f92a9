"""Who calls, and how many calls of each there may be at once.

Before a message has been received, nothing is known of a call but where it comes from; so what calls may take until
then is shared out by client, and within a client by connection.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attune_client.protocol.errors import ServerBusy

__all__ = ["CLIENT_KEY", "Caller", "Share", "caller_of"]

CLIENT_KEY = "attune-client"
"""Metadata by which a proxy that is trusted says for whom it calls."""

_LONGEST_NAME = 100
_IPV6_NETWORK = 64
_RETRY_AFTER_S = 1
_CONNECTION_PART = 0.25
_LEAST_OF_CONNECTION = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """The two ends of a call's other side: its client, and the connection that it came over."""

    client: str
    connection: str


def caller_of(context: Any, *, trusts_metadata: bool) -> Caller:
    """Who calls: the name in the metadata where that is trusted, else the address without its port."""
    connection = str(context.peer())
    if trusts_metadata:
        for key, value in context.invocation_metadata() or ():
            if key == CLIENT_KEY:
                return Caller(str(value)[:_LONGEST_NAME], connection)
    return Caller(_address_of(connection), connection)


def _address_of(peer: str) -> str:
    """The address in what gRPC tells of a peer: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`, or `unix:` and a path.

    Of IPv6 it is the network: a host has as many addresses as it likes.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    host = rest.rpartition(":")[0].removeprefix("%5B").removeprefix("[").removesuffix("%5D").removesuffix("]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
    return str(address)


class Share:
    """`most` places in all, of which `count` are taken; a client may have a part of them, and each of its connections
    a quarter of that part.

    A connection is counted for each client by itself: a proxy's is shared by all for whom it calls. It has two places
    at least where its client has as many: with one, a slow upload would keep the same program from a second one. Where
    a client has two in all, one connection may so take both; other clients' places are not touched.
    """

    def __init__(self, what: str, most: int, client_share: float) -> None:
        self._what, self._most = what, most
        self._client_most = max(1, math.ceil(most * client_share))
        quarter = math.ceil(self._client_most * _CONNECTION_PART)
        self._connection_most = min(self._client_most, max(_LEAST_OF_CONNECTION, quarter))
        self.count = 0
        self._clients: Counter[str] = Counter()
        self._connections: Counter[Caller] = Counter()

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """A place, as long as the context lasts; `ServerBusy` where there is none."""
        if (full := self._full_for(caller)) is not None:
            raise ServerBusy(f"{full} {self._what}", _RETRY_AFTER_S)
        self._enter(caller)
        try:
            yield
        finally:
            self._leave(caller)

    def _full_for(self, caller: Caller) -> str | None:
        """Which bound a caller has come to, and how many places are taken there; None where it has a place."""
        bounds = (
            ("the server", self.count, self._most),
            ("this client", self._clients[caller.client], self._client_most),
            ("this connection", self._connections[caller], self._connection_most),
        )
        return next((f"{whose} has {count}" for whose, count, most in bounds if count >= most), None)

    def _enter(self, caller: Caller) -> None:
        self.count += 1
        self._clients[caller.client] += 1
        self._connections[caller] += 1

    def _leave(self, caller: Caller) -> None:
        self.count -= 1
        _take_one(self._clients, caller.client)
        _take_one(self._connections, caller)


def _take_one(counter: Counter[Any], key: Any) -> None:
    """Count one less; what is not there any more is forgotten."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
