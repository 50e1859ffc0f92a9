"""What an operator may choose about the guard."""

from __future__ import annotations

from dataclasses import dataclass

from attune_client.protocol.bounds import MAX_MESSAGE_BYTES

__all__ = ["GuardSettings"]


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Bounds of the guard; all times in seconds.

    `max_message_bytes`: largest message. `max_calls`: calls at once, of whatever kind. `places`: requests in flight at
    a model whose configuration does not bound them. `client_share`: the part of a model's places that one client may
    take. `large_bytes`, `large_places`: of messages of that size, no more than so many are in flight at once, for each
    is in memory several times. `linger_s`: how long a forwarded request may go on after its client is gone before its
    call is cancelled. `answer_s`: how long Triton may take to answer a question about itself.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_calls: int = 1024
    places: int = 64
    client_share: float = 0.5
    large_bytes: int = 16 * 2**20
    large_places: int = 4
    linger_s: float = 10.0
    answer_s: float = 10.0
