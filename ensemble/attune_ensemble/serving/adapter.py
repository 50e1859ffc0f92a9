"""What every `model_repository/<model>/1/model.py` shares: tensors in, one library call, tensors out.

    class TritonPythonModel:
        def initialize(self, args):
            self.triton = Adapter(SPEECH_EMOTION, args, pb_utils)

        def execute(self, requests):
            return self.triton.answer_concurrently(requests, self.recognise)

The function that is handed over takes the request's tensors by name and returns, or yields, the response's tensors by
name. What it raises becomes that request's own error response; the other requests are not touched.

Every request that runs in a thread takes a place (`places`) or is refused at once; of one that nobody waits for any
more (`reply`) nothing further is done, wherever it waits. No wait is without limit, and no tensor leaves or enters with
values that are no numbers or that its declaration rules out.

Triton's `pb_utils` exists only inside the server's stub, so it is passed in: tests pass a fake.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_client.protocol.models import LEASE as LEASE_INPUT
from attune_client.protocol.models import MODELS
from attune_client.protocol.tensors import ModelSpec, Tensors, TensorSpec, bytes_tensor, text_of
from attune_ensemble.serving.lease import Lease
from attune_ensemble.serving.places import Places
from attune_ensemble.serving.reply import Reply, Watch

__all__ = ["ERROR", "LEASE", "Adapter", "Outputs"]

Outputs = Mapping[str, npt.ArrayLike]
"""The tensors of a response by name; a number, str or bytes stands for a tensor of one element."""

LEASE = LEASE_INPUT.name
"""The input that tells a model, called by another one, when its caller has given up."""

ERROR = "error"
"""The output that tells the calling model of a lease what ended a stream.

Once a response has gone out, Triton no longer hands an error response to a calling model, which then waits for ever.
"""

_MAX_CONCURRENT, _MAX_WAITING = 16, 16
_CALL_TIMEOUT_S = 300.0
_METRICS_PERIOD_S = 1.0

_CURRENT: ContextVar[Reply | None] = ContextVar("current", default=None)
"""The reply that the thread works on: what it calls ends with it."""


class Adapter:
    """One model's side of the server.

    Args:
        spec: the model's tensors.
        args: what Triton hands to `initialize`.
        pb_utils: the module `triton_python_backend_utils`.
    """

    def __init__(self, spec: ModelSpec, args: Mapping[str, str], pb_utils: Any) -> None:
        self._spec = spec
        self._pb = pb_utils
        parameters = json.loads(args["model_config"])["parameters"]
        self.settings: dict[str, str] = {name: value["string_value"] for name, value in parameters.items()}
        self._places = Places(
            spec.name,
            at_work=int(self.settings.get("max_concurrent", _MAX_CONCURRENT)),
            waiting=int(self.settings.get("max_waiting", _MAX_WAITING)),
        )
        self._watch = Watch(spec.name, pb_utils.Logger.log_error)
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self.folder = Path(args["model_repository"]) / args["model_version"]

    def answer(self, requests: Sequence[Any], function: Callable[[Tensors], Outputs]) -> list[Any]:
        """Answer the requests one after the other; returns the responses that `execute` must return.

        For models that answer in milliseconds: requests wait in Triton's queue, where nothing bounds or cancels them.
        """

        def respond(request: Any) -> Any:
            try:
                return self._response(function(self._read(request)))
            except Exception as error:
                return self._error_response(error)

        return [respond(request) for request in requests]

    def answer_concurrently(self, requests: Sequence[Any], function: Callable[[Tensors], Outputs]) -> None:
        """Answer each request in a thread, and let `execute` return at once.

        For models that mostly wait for other models, or whose requests may have to wait for their turn.
        """
        self._start(requests, lambda reply, inputs: self._response(function(inputs)))

    def stream(self, requests: Sequence[Any], function: Callable[[Tensors], Generator[Outputs]]) -> None:
        """Answer each request of a decoupled model in a thread: every item that `function` yields is sent at once.
        An empty one is not: it is a chance to see that the client has gone.

        When the client cancels, or the caller's lease ends, the generator is closed, its last item dropped, and the
        stream ends with `RequestCancelled`: a stream without an error is a whole one.
        """
        self._start(requests, lambda reply, inputs: self._send_all(reply, function(inputs)))

    def check(self) -> None:
        """Raise RequestCancelled if nobody waits any more for what this thread works on; for between long steps."""
        if (reply := _CURRENT.get()) is not None:
            reply.check()

    def publish(self, meanings: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
        """Publish gauges among the server's metrics: `meanings` by name, and their values whenever they are read.

        The server collects what was last written, so a thread writes once a second.
        """
        if not meanings:
            return
        labels = {"model": self._spec.name}
        families = [
            (name, self._pb.MetricFamily(name=name, description=meaning, kind=self._pb.MetricFamily.GAUGE))
            for name, meaning in meanings.items()
        ]
        # A metric ends with its family, so both are held.
        gauges = {name: (family, family.Metric(labels=labels)) for name, family in families}

        def write() -> None:
            while True:
                for name, value in read().items():
                    gauges[name][1].set(value)
                time.sleep(_METRICS_PERIOD_S)

        threading.Thread(target=write, name=f"{self._spec.name}-metrics", daemon=True).start()

    def call(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float = _CALL_TIMEOUT_S) -> Tensors:
        """Call another model of the repository.

        Raises:
            RequestCancelled: nobody waits any more for the request at work in this thread.
            RequestTimeout: no answer within `timeout_s`.
            AttuneError: the one that the model answered; ServerError if it is none of ours.
        """
        with self._lease(name) as lease:
            request = self._request(name, {**inputs, **lease})
            answers = _in_background(lambda: iter([self._tensors(name, request.exec())]), name, timeout_s)
            with contextlib.closing(answers):
                return next(answers)

    def call_stream(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float = _CALL_TIMEOUT_S
    ) -> Generator[Tensors]:
        """Call a decoupled model and yield its responses as they come; closing the iterator stops that model.

        Raises:
            RequestCancelled: as `call` does.
            RequestTimeout: a response, be it the first or a later one, took longer than `timeout_s`.
            AttuneError: as `call` does.
        """
        with self._lease(name) as lease:
            request = self._request(name, {**inputs, **lease})

            def produce() -> Iterator[Tensors]:
                # In the other thread: `exec` itself blocks until the first response.
                return (self._tensors(name, response) for response in request.exec(decoupled=True))

            with contextlib.closing(_in_background(produce, name, timeout_s)) as answers:
                yield from filter(None, answers)

    @contextlib.contextmanager
    def _lease(self, name: str) -> Iterator[Tensors]:
        """The lease as an input of the model to be called; nothing for one that takes no lease."""
        if LEASE_INPUT not in MODELS[name].inputs:
            yield {}
            return
        with Lease() as lease:
            yield {LEASE: bytes_tensor(lease.token)}

    def _start(self, requests: Sequence[Any], respond: Callable[[Reply, Tensors], Any]) -> None:
        """Let `respond` make the last response of each request, or None where there is none, in a thread."""
        for request in requests:
            reply = Reply(request.get_response_sender(), self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            try:
                self._begin(reply, request, respond)
            except Exception as error:
                self._finish(reply, self._failure(reply, error))

    def _begin(self, reply: Reply, request: Any, respond: Callable[[Reply, Tensors], Any]) -> None:
        # The request's memory is given back when `execute` returns, so the thread needs a copy.
        inputs = {name: array.copy() for name, array in self._read(request).items()}
        if (lease := inputs.pop(LEASE, None)) is not None:
            reply.depend_on(text_of(lease))
        work = partial(self._serve, reply, partial(respond, reply, inputs))
        self._watch.add(reply)
        self._places.take(work)
        # After it has its place: whoever is told before could not give it back.
        reply.when_abandoned(lambda: self._withdraw(reply, work))

    def _serve(self, reply: Reply, respond: Callable[[], Any]) -> None:
        _CURRENT.set(reply)
        try:
            reply.look()  # one that was given up while it waited for its turn must not begin
            reply.check()
            response = respond()
        except Exception as error:
            response = self._failure(reply, error)
        self._finish(reply, response)

    def _withdraw(self, reply: Reply, work: Callable[[], None]) -> None:
        """Give up a request that waits; one at work sees for itself."""
        if self._places.withdraw(work):
            self._finish(reply, self._failure(reply, RequestCancelled("given up while it waited for its turn")))

    def _finish(self, reply: Reply, response: Any) -> None:
        self._watch.remove(reply)
        try:
            reply.finish(response)
        except Exception as error:  # the server stops, or will not have this response: nobody can be told
            self._pb.Logger.log_error(f"{self._spec.name}: the last response could not be sent: {error}")

    def _send_all(self, reply: Reply, items: Generator[Outputs]) -> None:
        with contextlib.closing(items):
            for outputs in items:
                reply.look()
                reply.check()
                if outputs:
                    reply.send(self._response(outputs))

    def _read(self, request: Any) -> Tensors:
        """The request's tensors by name; optional ones that were not sent are missing."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def _response(self, outputs: Outputs) -> Any:
        arrays = {name: _array(self._spec.output(name), value) for name, value in outputs.items()}
        _require_sound(self._spec, arrays)
        return self._pb.InferenceResponse([self._pb.Tensor(name, array) for name, array in arrays.items()])

    def _failure(self, reply: Reply, error: Exception) -> Any:
        """The last response of a request that failed.

        An error that is not final leaves a calling model, and the server when it stops, waiting for ever.
        """
        in_band = self._spec.decoupled and reply.on_lease
        return self._error_output(error) if in_band else self._error_response(error)

    def _error_response(self, error: Exception) -> Any:
        told = self._told(error)
        return self._pb.InferenceResponse(error=self._pb.TritonError(told.to_wire(), self._error_code(told)))

    def _error_output(self, error: Exception) -> Any:
        return self._response({ERROR: self._told(error).to_wire()})

    def _told(self, error: Exception) -> AttuneError:
        """What a client may know of an error; the log gets the rest."""
        if isinstance(error, RequestCancelled):
            self._pb.Logger.log_info(f"{self._spec.name}: given up by its caller")
        if isinstance(error, ServerBusy) and error.retry_after_s is None:
            return ServerBusy(str(error), self._places.retry_after_s)
        # One without a code of its own is of a library of ours, and may name paths.
        if isinstance(error, AttuneError) and error.code != AttuneError.code:
            return error
        self._pb.Logger.log_error(f"{self._spec.name}: {''.join(traceback.format_exception(error))}")
        return ServerError(f"{self._spec.name} failed; see the server's log")

    def _error_code(self, error: AttuneError) -> Any:
        codes = self._pb.TritonError
        match error:
            case InvalidRequest():
                return codes.INVALID_ARG
            case RequestCancelled():
                return codes.CANCELLED
            case RequestTimeout() | ServerUnavailable():
                return codes.UNAVAILABLE
            case _:
                return codes.INTERNAL

    def _request(self, name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Any:
        return self._pb.InferenceRequest(
            model_name=name,
            requested_output_names=[tensor.name for tensor in MODELS[name].outputs],
            inputs=[self._pb.Tensor(key, _array(MODELS[name].input(key), value)) for key, value in inputs.items()],
            # Without this a model on the GPU would answer with memory that numpy cannot read.
            preferred_memory=self._pb.PreferredMemory(self._pb.TRITONSERVER_MEMORY_CPU, 0),
        )

    def _tensors(self, name: str, response: Any) -> Tensors:
        """The tensors of a called model's response, copied out of the memory that it shares with the server."""
        if response.has_error():
            raise self._answered(name, response.error().message())
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in response.output_tensors()}
        if ERROR in tensors:
            raise self._answered(name, text_of(tensors[ERROR]))
        _require_sound(MODELS[name], tensors)
        return tensors

    def _answered(self, name: str, message: str) -> AttuneError:
        error = from_wire(message)
        if type(error) is ServerError:
            self._pb.Logger.log_error(f"{self._spec.name}: {name} answered: {message}")
        return error


def _array(spec: TensorSpec, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """The value in the declared type; a scalar becomes [1]."""
    return np.ascontiguousarray(np.asarray(value, dtype=spec.dtype.numpy))


def _require_sound(spec: ModelSpec, outputs: Tensors) -> None:
    """Raise ServerError for outputs with values that are no numbers, or that the declaration rules out."""
    for name, array in outputs.items():
        if fault := spec.output(name).fault(array):
            raise ServerError(f"{spec.name} failed: {fault}")


def _in_background(produce: Callable[[], Iterator[Tensors]], name: str, timeout_s: float) -> Generator[Tensors]:
    """The items of `produce()`, made in a thread: neither a model that died nor one that is slow to answer can hold a
    caller for ever, or one that nobody waits for any more.

    The thread goes on to the end when nobody takes the items any more: Triton keeps a response until it is read.
    """
    end = object()
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            for item in produce():
                items.put(item)
            items.put(end)
        except Exception as error:
            items.put(error)

    with _told_when_abandoned(lambda: items.put(end)) as check:
        check()
        # A daemon, because a call that never returns must not keep the process alive.
        threading.Thread(target=work, name=f"call-{name}", daemon=True).start()
        while True:
            try:
                item = items.get(timeout=timeout_s)
            except queue.Empty:
                raise RequestTimeout(f"{name} gave no answer within {timeout_s:g} s") from None
            check()
            if item is end:
                return
            if isinstance(item, Exception):
                try:
                    raise item
                finally:
                    del item  # it holds this frame, and so the request's tensors, until somebody collects the circle
            yield item


@contextlib.contextmanager
def _told_when_abandoned(tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Let `tell` be called when nobody waits any more for this thread's request; gives what checks that."""
    reply = _CURRENT.get()
    if reply is None:
        yield lambda: None
        return
    with reply.telling(tell):
        yield reply.check
