"""What a request is told when something fails."""

from __future__ import annotations

import torch

from attune_client.protocol.errors import AttuneError, ServerError, ServerUnavailable

__all__ = ["EngineBusy", "as_attune_error"]


class EngineBusy(ServerUnavailable):
    """Every slot is taken and the queue is full, or the memory is: try again later."""


def as_attune_error(error: Exception) -> AttuneError:
    """The error for a listener: without internals, which are in the server's log."""
    if isinstance(error, AttuneError):
        return error
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EngineBusy("the GPU has no memory left for this request: try again later")
    return ServerError("making the music failed; the server's log says more")
