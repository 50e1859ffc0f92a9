"""The device of a thread, and exact float32 on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["exact_convolutions", "on_device"]

P = ParamSpec("P")
T = TypeVar("T")


def on_device(device: torch.device, run: Callable[P, T]) -> Callable[P, T]:
    """`run` with `device` as the current one: streams, events and graphs belong to it.

    CUDA keeps the current device for each thread, and a new thread begins with the first GPU.
    """
    if device.type != "cuda":
        return run

    @wraps(run)
    def running(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.cuda.device(device):
            return run(*args, **kwargs)

    return running


class _Exactness:
    """How many ask for exact convolutions: the setting is the process', so the first sets it and the last resets it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._askers = 0
        self._usual = False

    def enter(self) -> None:
        with self._lock:
            if not self._askers:
                self._usual = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._askers += 1

    def leave(self) -> None:
        with self._lock:
            self._askers -= 1
            if not self._askers:
                torch.backends.cudnn.allow_tf32 = self._usual


_exactness = _Exactness()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let convolutions and recurrent layers in float32 keep all 24 bits: by default a GPU rounds inputs to 11 (TF32).

    Matrix products have a setting of their own, which stays as it is.
    """
    _exactness.enter()
    try:
        yield
    finally:
        _exactness.leave()
