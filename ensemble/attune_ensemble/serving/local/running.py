"""What runs at the moment, so that it can be ended before the services that it works with are closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from attune_client.protocol.errors import InvalidRequest
from attune_client.protocol.tensors import Tensors
from attune_ensemble.call import CallContext

__all__ = ["RunningCalls"]

Responses = Generator[Tensors, None, None]


class RunningCalls:
    """Counts the calls that run. `end` refuses further ones, and cancels those that run through their contexts."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._ended = False
        self._streams: set[Responses] = set()
        self._listeners: list[Callable[[], None]] = []

    def until_the_end(self, context: CallContext) -> CallContext:
        """The context of a call that is also cancelled by `end`."""

        @contextlib.contextmanager
        def on_cancel(tell: Callable[[], None]) -> Iterator[None]:
            with self._listened_by(tell), context.on_cancel(tell):
                yield

        return replace(context, is_cancelled=lambda: self._ended or context.is_cancelled(), on_cancel=on_cancel)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """While this lasts, a call runs; `InvalidRequest` after the end."""
        with self._changed:
            if self._ended:
                raise InvalidRequest("these models are closed")
            self._count += 1
        try:
            yield
        finally:
            self._one_less()

    def stream(self, responses: Responses) -> Responses:
        """The same responses; a stream runs while it is asked for the next one, and `end` closes it in between."""
        with self._changed:
            self._streams.add(responses)
        try:
            while True:
                with self.counted():
                    try:
                        response = next(responses)
                    except StopIteration:
                        return
                yield response
        finally:
            if self._take(responses):
                try:
                    responses.close()
                finally:
                    self._one_less()

    def end(self) -> None:
        """Cancel what runs, wait until nothing does, and close the streams that nobody asks at the moment."""
        with self._changed:
            self._ended = True
            listeners = tuple(self._listeners)
        for tell in listeners:
            tell()
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)
            streams, self._streams = self._streams, set()
        with contextlib.ExitStack() as stack:
            for responses in streams:
                stack.callback(responses.close)

    def _take(self, responses: Responses) -> bool:
        """Whether it is for the caller, and not for `end`, to close a stream; until it has, the stream runs."""
        with self._changed:
            if responses not in self._streams:
                return False
            self._streams.remove(responses)
            self._count += 1
            return True

    def _one_less(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    @contextlib.contextmanager
    def _listened_by(self, tell: Callable[[], None]) -> Iterator[None]:
        with self._changed:
            self._listeners.append(tell)
            ended = self._ended
        try:
            if ended:
                tell()
            yield
        finally:
            with self._changed:
                self._listeners.remove(tell)
