"""Threads, and those that OpenMP makes beside them. Imports no torch, which reads OpenMP's settings as it is loaded."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["CLOSE_S", "has_ended", "keep_workers_awake", "on_own_thread"]

CLOSE_S = 10.0
"""How long a thread may take to end: a step and what is under way in the codec take far less."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


def keep_workers_awake() -> None:
    """Let OpenMP's workers wait a moment for the next operation before they sleep; to be called before torch is loaded.

    The server tells them to sleep at once, because its models share the cores. A step of the decoder is hundreds of
    short operations, and takes 1.6 times as long (int8, two cores) if its workers have to be woken for each.
    """
    os.environ.pop("OMP_WAIT_POLICY", None)


def on_own_thread(run: Callable[[], T]) -> T:
    """Return what `run` returns, from a thread that ends with it.

    OpenMP keeps workers for each thread that ever computed, until it ends. As soon as all of them are more than the
    cores, none waits awake for its next operation any longer: a decoder's step on a second thread takes 1.4 times
    (float32) to 1.7 times (int8) as long on two cores. So whoever computes beside the engine does it here.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()


def has_ended(thread: threading.Thread) -> bool:
    """Wait for a thread that has been told to end, up to `CLOSE_S`; one that has not ended by then is logged."""
    thread.join(CLOSE_S)
    if thread.is_alive():
        _log.error("the thread %s has not ended within %g s: its memory is kept until it does", thread.name, CLOSE_S)
    return not thread.is_alive()
