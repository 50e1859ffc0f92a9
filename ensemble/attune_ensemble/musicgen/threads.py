"""Threads and PyTorch's own threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["on_own_thread"]

T = TypeVar("T")


def on_own_thread(run: Callable[[], T]) -> T:
    """Return what `run` returns, from a thread that ends with it.

    OpenMP keeps workers for each thread that ever computed, until it ends. As soon as all of them are more than the
    cores, none waits awake for its next operation any longer: a decoder's step on a second thread takes 1.4 times
    (float32) to 1.7 times (int8) as long on two cores. So whoever computes beside the engine does it here.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()
