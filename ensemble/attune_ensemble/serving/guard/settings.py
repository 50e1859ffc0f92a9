"""What an operator may choose about the guard."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from attune_client.protocol.bounds import MAX_MESSAGE_BYTES
from attune_client.protocol.models import MUSIC_SAMPLE_RATE

__all__ = ["GuardSettings", "memory_bytes"]

_BYTES_PER_S = 2 * 2 * 4 * MUSIC_SAMPLE_RATE
"""What a second of music takes until its stream ends: Triton 2.51 keeps every response until then, and there are two
streams of stereo in float32, one behind the other."""

_PART_FOR_MUSIC = 3
_PART_FOR_UPLOADS = 8
_FEWEST_UPLOADS = 4
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int:
    """The memory of this machine, or of the container that this process is in."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max"
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return memory


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Bounds of the guard; all times in seconds.

    `max_message_bytes`: largest message. `upload_bytes`: memory for messages that are being received for longer than a
    second, of which nothing is known yet but that each may be of the largest size; as much again is for further ones of
    streams. `message_s`: how long a client may take to send a message that is waited for. `reader_s`: how long a client
    may take nothing of an answer that it was sent.

    `connection_calls`: calls at once over one connection; gRPC resets what comes beyond that, some of it so that the
    client learns nothing else, and so it is more than clients should need. `max_calls`: requests' calls at once, of all
    clients. `stream_requests`: requests of one stream that are not answered yet. `places`: requests in flight at a
    model whose configuration does not bound them. `client_share`: the part of calls, uploads, a model's places and the
    music that one client may take. `trust_client_metadata`: a client is whom the metadata `attune-client` names, as a
    proxy in front fills it in; else it is the address that a call comes from. `music_s`: seconds of music that may be
    in flight in all streams together. `large_bytes`, `large_places`: of messages of that size, no more than so many are
    in flight at once, for each is in memory several times. `linger_s`: how long a forwarded request may go on after its
    client is gone before its call is cancelled. `answer_s`: how long Triton may take to answer a question about itself.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    upload_bytes: int = field(default_factory=lambda: memory_bytes() // _PART_FOR_UPLOADS)
    message_s: float = 120.0
    reader_s: float = 60.0
    connection_calls: int = 256
    max_calls: int = 1024
    stream_requests: int = 8
    places: int = 64
    client_share: float = 0.5
    trust_client_metadata: bool = False
    music_s: float = field(default_factory=lambda: memory_bytes() / _PART_FOR_MUSIC / _BYTES_PER_S)
    large_bytes: int = 16 * 2**20
    large_places: int = 4
    linger_s: float = 10.0
    answer_s: float = 10.0

    @property
    def uploads(self) -> int:
        """How many messages may be received at once for longer than a second."""
        return min(max(_FEWEST_UPLOADS, self.upload_bytes // self.max_message_bytes), self.max_calls)
