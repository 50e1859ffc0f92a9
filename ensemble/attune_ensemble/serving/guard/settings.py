"""What an operator may choose about the guard."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from attune_client.protocol.bounds import MAX_MESSAGE_BYTES

__all__ = ["GuardSettings", "memory_bytes"]

_PART_FOR_UPLOADS = 8
_FEWEST_UPLOADS = 4
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """The memory of this machine, or of the container or service that this process is in, whichever is least."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroups():
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"
            memory = min(memory, int((folder / "memory.max").read_text()))
    return memory


def _cgroups() -> list[Path]:
    """The folders of this process's control group and of those that it is in (cgroups(7), version 2)."""
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::/"):
                own = _CGROUPS / line.removeprefix("0::/")
                return [own, *(parent for parent in own.parents if parent.is_relative_to(_CGROUPS))]
    return [_CGROUPS]


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
    model whose configuration does not bound them. `client_share`: the part of calls, uploads and a model's places that
    one client may take. `trust_client_metadata`: a client is whom the metadata `attune-client` names, as a proxy in
    front fills it in; else it is the address that a call comes from. `large_bytes`, `large_places`: of messages of that
    size, no more than so many are in flight at once, for each is in memory several times. `linger_s`: how long a
    forwarded request may go on after its client is gone before its call is cancelled. `answer_s`: how long Triton may
    take to answer a question about itself.
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
    large_bytes: int = 16 * 2**20
    large_places: int = 4
    linger_s: float = 10.0
    answer_s: float = 10.0

    @property
    def uploads(self) -> int:
        """How many messages may be received at once for longer than a second."""
        return min(max(_FEWEST_UPLOADS, self.upload_bytes // self.max_message_bytes), self.max_calls)
