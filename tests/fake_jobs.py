"""Jobs for the processes of `attune bench encoders`, without models: they sleep, fail, or end.

A process imports this module anew, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sleeper:
    """Sleeps, and answers with `value` for each of three dimensions; every pass is written down in `log`."""

    name: str
    seconds: float
    value: float = 3.0
    log: Path | None = None

    def ready(self) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            time.sleep(self.seconds)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{self.name}\n")
            return np.full((1 if request is None else len(request), 3), self.value, np.float32)

        return answer


@dataclass(frozen=True)
class FailsToStart:
    def ready(self) -> Callable[[Any], Any]:
        raise OSError("there is no\nsuch graph")


@dataclass(frozen=True)
class FailsAt:
    """Fails in the pass of this number, from 1; with a status its process ends there."""

    number: int
    status: int | None = None

    def ready(self) -> Callable[[Any], Any]:
        passes = iter(range(1, 100))

        def answer(_: Any) -> Any:
            if next(passes) == self.number:
                if self.status is not None:
                    os._exit(self.status)
                raise ValueError("out of memory")
            return np.zeros((1, 3), np.float32)

        return answer


@dataclass(frozen=True)
class Meter:
    """Rates of products."""

    def ready(self) -> Callable[[Any], Any]:
        return lambda _: {"float32": 1e9, "int8": 4e9}
