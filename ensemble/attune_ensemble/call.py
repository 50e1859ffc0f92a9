"""How one model calls another: by name, with tensors, and with the context of the request that it works for.

    vad = call("emotion_recognition", segments, context=context)

A context says until when the answer is of use, whether anybody still waits for it, and which request it is for.
Everything that works for a request is handed its context, checks it before and after each piece of work, and hands
it on, so that nothing goes on for long after the deadline or after a cancellation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy.typing as npt

from attune_client.protocol.errors import RequestCancelled, RequestTimeout
from attune_client.protocol.tensors import Tensors

__all__ = ["UNLIMITED", "Call", "CallContext", "CallStream"]

Listening = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""While the returned context lasts, the function that was handed over is called as soon as nobody waits any more."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is known of the request that is worked for; the default is a request without limit.

    Args:
        deadline: when the answer is of no more use, in seconds of `time.monotonic`; None where it always is.
        is_cancelled: whether nobody waits for the answer any more.
        request_id: names the request in logs; a model that is called gets `parent/model`.
        on_cancel: for those who wait and cannot ask `is_cancelled` again and again; see `Listening`.
    """

    deadline: float | None = None
    is_cancelled: Callable[[], bool] = lambda: False
    request_id: str = ""
    on_cancel: Listening = lambda tell: nullcontext()

    @classmethod
    def within(cls, seconds: float) -> Self:
        """The context of a request whose deadline is that many seconds from now."""
        return cls(deadline=time.monotonic() + seconds)

    def left_s(self) -> float | None:
        """Seconds until the deadline, never below 0; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self, what: str = "the request") -> None:
        """Raise if it makes no sense to go on; `what` names, for the message, the work that is not done.

        Raises:
            RequestTimeout: the deadline has passed.
            RequestCancelled: nobody waits for the answer any more.
        """
        if self.left_s() == 0.0:
            raise RequestTimeout(f"the deadline passed before {what} was done")
        if self.is_cancelled():
            raise RequestCancelled("whoever asked gave up, vanished, or came to the deadline")

    def for_stage(self, name: str) -> Self:
        """The context of the model `name` when it is called for this request: the same, under a longer id."""
        return replace(self, request_id=f"{self.request_id}/{name}")


UNLIMITED = CallContext()
"""For work that belongs to no request: it may take as long as it takes."""


class Call(Protocol):
    """Calls one model of the repository by name and returns its outputs by name.

    Raises the `AttuneError` that the model answered, and what `CallContext.check` raises as soon as it would.
    """

    def __call__(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext) -> Tensors:
        """One call."""
        ...


class CallStream(Protocol):
    """Calls one streaming model by name and yields its responses; closing the generator stops that model.

    Raises as `Call` does.
    """

    def __call__(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /, *, context: CallContext
    ) -> Generator[Tensors, None, None]:
        """One call."""
        ...
