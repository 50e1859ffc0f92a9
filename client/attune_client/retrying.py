"""Sending a request again that the server could not take, until it has begun to answer.

attempts = Retrying(3).attempts(inputs)
while True:
    try:
        return ask(attempts.inputs())
    except ServerUnavailable as error:
        time.sleep(attempts.pause_s(error))
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import (
    InvalidOption,
    RequestTimeout,
    ServerBusy,
    ServerUnavailable,
    ServerUnreachable,
)
from attune_client.protocol.models import DEADLINE

__all__ = ["MAX_RETRIES", "Retrying", "check_retries"]

Inputs = Mapping[str, npt.NDArray[Any]]

MAX_RETRIES = 100
"""Most retries that a client may be given."""

_FIRST_S, _LONGEST_S = 0.5, 8.0
"""Pause after the first attempt and longest one, in seconds, where the server does not say when to come back."""

_JITTER = 0.25
"""By which part of itself a pause is longer at most, so that those who were refused together do not come back so."""


@dataclass(frozen=True)
class Retrying:
    """Which requests are sent again: at most `times`, and none that would begin `within_s` seconds or more after the
    first.

    Only what the server could not take, or could not finish because a model died, is sent again (`ServerUnavailable`,
    and so `ServerBusy`); where `unreachable` is False, not what did not reach it. `tell` is called with the error and
    the pause, in seconds, before each pause.
    """

    times: int
    within_s: float = math.inf
    unreachable: bool = True
    tell: Callable[[ServerUnavailable, float], None] | None = None

    def attempts(self, inputs: Inputs) -> Attempts:
        """Those of one request, which begins now."""
        return Attempts(self, inputs)


def check_retries(retries: Any) -> Retrying:
    """The argument of a client; `InvalidOption` for what is no number of retries."""
    if isinstance(retries, Retrying):
        return retries
    times = int(retries) if isinstance(retries, Integral) and not isinstance(retries, bool) else -1
    if not 0 <= times <= MAX_RETRIES:
        raise InvalidOption(f"retries must be a whole number from 0 to {MAX_RETRIES}, not {quote(retries)}")
    return Retrying(times)


class Attempts:
    """The attempts at one request; its deadline counts from the first of them."""

    def __init__(self, policy: Retrying, inputs: Inputs) -> None:
        self._policy, self._inputs = policy, inputs
        self._begun_s = time.monotonic()
        self._failed = 0

    def inputs(self) -> Inputs:
        """The inputs of the next attempt, with what is left of the deadline; `RequestTimeout` where nothing is."""
        if not self._failed or DEADLINE.name not in self._inputs:
            return self._inputs
        left = np.array([self._deadline_s() - self._passed_s()], np.float32)
        if left[0] <= 0:
            raise RequestTimeout("the deadline passed before the request could be sent again")
        return {**self._inputs, DEADLINE.name: left}

    def pause_s(self, error: ServerUnavailable) -> float:
        """How long to wait before the next attempt, in seconds; raises `error` where there is to be none."""
        pause_s = _pause_s(error, self._failed)
        self._failed += 1
        is_over = self._failed > self._policy.times
        is_late = self._passed_s() + pause_s >= min(self._policy.within_s, self._deadline_s())
        if is_over or is_late or (isinstance(error, ServerUnreachable) and not self._policy.unreachable):
            raise error
        if self._policy.tell is not None:
            self._policy.tell(error, pause_s)
        return pause_s

    def _deadline_s(self) -> float:
        return float(self._inputs[DEADLINE.name].flat[0]) if DEADLINE.name in self._inputs else math.inf

    def _passed_s(self) -> float:
        return time.monotonic() - self._begun_s


def _pause_s(error: ServerUnavailable, failed: int) -> float:
    told_s = error.retry_after_s if isinstance(error, ServerBusy) else None
    # Who was refused again after the time that the server said stays away for longer.
    first_s = _FIRST_S if told_s is None else float(told_s)
    shortest_s = max(first_s, min(_LONGEST_S, first_s * 2.0**failed))
    return shortest_s * random.uniform(1.0, 1.0 + _JITTER)
