"""What a request is told when something fails."""

from __future__ import annotations

import torch

from attune_client.protocol.errors import AttuneError, ServerBusy, ServerError

__all__ = ["EngineBusy", "as_attune_error"]


class EngineBusy(ServerBusy):
    """Every slot is taken and the queue is full, or the memory is; the adapter says when to try again."""


def as_attune_error(error: Exception) -> AttuneError:
    """The error for a listener: without internals, which are in the server's log."""
    if isinstance(error, AttuneError):
        return error
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EngineBusy("the GPU has no memory left for this request")
    return ServerError("making the music failed; the server's log says more")
