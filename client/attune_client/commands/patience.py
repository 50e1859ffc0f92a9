"""How the commands wait for a server that says that it is busy, or that it comes back."""

from __future__ import annotations

import time

import click

from attune_client.protocol.errors import ServerUnavailable
from attune_client.retrying import MAX_RETRIES, Retrying

__all__ = ["patiently"]

WITHIN_S = 30.0
"""How long a request that the server does not take is sent again, in seconds."""


def patiently() -> Retrying:
    """Return how a command sends again what the server cannot take; whoever waits is told on standard error.

    Where nothing answers at all, waiting is of no use.
    """
    told_until_s = 0.0

    def tell(error: ServerUnavailable, pause_s: float) -> None:
        nonlocal told_until_s
        now_s = time.monotonic()
        if now_s < told_until_s:
            return  # several requests are refused at a time
        told_until_s = now_s + pause_s
        click.echo(f"waiting for {pause_s:.0f} s: {error}", err=True)

    return Retrying(MAX_RETRIES, within_s=WITHIN_S, unreachable=False, tell=tell)
