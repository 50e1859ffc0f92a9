"""Services that are made when they are first asked for, each once, and each in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from attune_client.protocol.errors import AttuneError, InvalidRequest, ServerError, ServerUnavailable
from attune_ensemble.call import CallContext
from attune_ensemble.serving.services import Service

__all__ = ["Services"]

_HEARTBEAT_S = 0.1
_WITHOUT_A_REASON = (AttuneError.code, ServerError.code)


class Services:
    """What `load(name)` makes, by name. Whoever waits for one does not wait for another; safe in several threads."""

    def __init__(self, load: Callable[[str], Service]) -> None:
        self._load = load
        self._futures: dict[str, Future[Service]] = {}
        self._changing = threading.Lock()
        self._closed = False

    def get(self, name: str, context: CallContext) -> Service:
        """The service of that name; one that is not there yet is waited for as long as the context says.

        Loading goes on when a caller gives up, for the next one. After a failure whoever asks next tries again.

        Raises:
            ServerUnavailable: it cannot be made; its cause says why.
            RequestTimeout, RequestCancelled: as the context says.
        """
        context.check(name)
        future = self._future(name)
        while not wait([future], _patience_s(context)).done:
            context.check(f"loading {name}")
        if future.exception():
            self._forget(name, future)
        return future.result()

    def close(self) -> None:
        """Close every service, one that is still being made once it is."""
        with self._changing:
            self._closed = True
            futures, self._futures = self._futures, {}
        with contextlib.ExitStack() as stack:
            for future in futures.values():
                if future.exception() is None:
                    stack.callback(future.result().close)

    def _future(self, name: str) -> Future[Service]:
        with self._changing:
            if self._closed:
                raise InvalidRequest("these models are closed")
            if name not in self._futures:
                maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"load-{name}")
                self._futures[name] = maker.submit(self._make, name)
                maker.shutdown(wait=False)
            return self._futures[name]

    def _forget(self, name: str, future: Future[Service]) -> None:
        with self._changing:
            if self._futures.get(name) is future:
                del self._futures[name]

    def _make(self, name: str) -> Service:
        try:
            return self._load(name)
        except Exception as error:
            if isinstance(error, AttuneError) and error.code not in _WITHOUT_A_REASON:
                raise
            raise ServerUnavailable(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def _patience_s(context: CallContext) -> float:
    """How long to wait before the context is looked at again."""
    left_s = context.left_s()
    return _HEARTBEAT_S if left_s is None else min(_HEARTBEAT_S, left_s)
