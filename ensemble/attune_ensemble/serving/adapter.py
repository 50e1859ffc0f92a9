"""What every `model_repository/<model>/1/model.py` shares: tensors in, one library call, tensors out.

    class TritonPythonModel:
        def initialize(self, args):
            self.triton = Adapter(SPEECH_EMOTION, args, pb_utils)

        def execute(self, requests):
            return self.triton.answer_concurrently(requests, self.recognise)

The function that is handed over takes the request's tensors by name and returns, or yields, the response's tensors by
name. What it raises becomes that request's own error response; the other requests are not touched.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_client.protocol.models import MODELS
from attune_client.protocol.tensors import ModelSpec, TensorSpec
from attune_ensemble.serving.lease import Lease, is_held
from attune_ensemble.tensors import Tensors, text_of

__all__ = ["ERROR", "LEASE", "Adapter", "Outputs"]

Outputs = Mapping[str, npt.ArrayLike]
"""The tensors of a response by name; a number, str or bytes stands for a tensor of one element."""

LEASE = "lease"
"""The input that tells a streaming model, called by another one, when its caller has given up."""

ERROR = "error"
"""The output that tells the calling model of a lease what ended a stream.

Once a response has gone out, Triton no longer hands an error response to a calling model, which then waits for ever.
"""

_MAX_CONCURRENT = 16
_CALL_TIMEOUT_S = 300.0
_METRICS_PERIOD_S = 1.0


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
        self._pool = ThreadPoolExecutor(
            int(self.settings.get("max_concurrent", _MAX_CONCURRENT)), thread_name_prefix=spec.name
        )
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self.folder = Path(args["model_repository"]) / args["model_version"]

    def answer(self, requests: Sequence[Any], function: Callable[[Tensors], Outputs]) -> list[Any]:
        """Answer the requests one after the other; returns the responses that `execute` must return."""

        def respond(request: Any) -> Any:
            return self._respond(lambda: function(self._read(request)))

        return [respond(request) for request in requests]

    def answer_concurrently(self, requests: Sequence[Any], function: Callable[[Tensors], Outputs]) -> None:
        """Answer each request in a thread, and let `execute` return at once.

        For models that mostly wait for other models: one process serves many requests.
        """

        def work(sender: Any, inputs: Tensors) -> None:
            sender.send(self._respond(lambda: function(inputs)), flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        self._start(requests, work)

    def stream(self, requests: Sequence[Any], function: Callable[[Tensors], Generator[Outputs]]) -> None:
        """Answer each request of a decoupled model in a thread: every item that `function` yields is sent at once.
        An empty one is not: it is a chance to see that the client has gone.

        When the client cancels, or the caller's lease ends, the generator is closed and its last item dropped.
        """

        def work(sender: Any, inputs: Tensors) -> None:
            # An error that is not final leaves a calling model, and the server when it stops, waiting for ever.
            final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            answer = self._error_output if LEASE in inputs else self._error_response
            try:
                self._send_all(sender, inputs, function)
            except Exception as error:
                sender.send(answer(error), flags=final)
            else:
                sender.send(flags=final)

        self._start(requests, work)

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
            RequestTimeout: no answer within `timeout_s`.
            AttuneError: the one that the model answered; ServerError if it is none of ours.
        """
        request = self._request(name, inputs)
        return next(_in_background(lambda: iter([self._tensors(name, request.exec())]), name, timeout_s))

    def call_stream(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float = _CALL_TIMEOUT_S
    ) -> Generator[Tensors]:
        """Call a decoupled model and yield its responses as they come; closing the iterator stops that model.

        Raises:
            RequestTimeout: a response took longer than `timeout_s`.
            AttuneError: as `call` does.
        """
        with contextlib.ExitStack() as stack:
            if any(tensor.name == LEASE for tensor in MODELS[name].inputs):
                lease = stack.enter_context(Lease())
                inputs = {**inputs, LEASE: np.array([lease.token.encode()], dtype=np.object_)}
            request = self._request(name, inputs)
            responses = (self._tensors(name, response) for response in request.exec(decoupled=True))
            yield from filter(None, _in_background(lambda: responses, name, timeout_s))

    def _start(self, requests: Sequence[Any], work: Callable[[Any, Tensors], None]) -> None:
        for request in requests:
            # The request's memory is given back when `execute` returns, so the thread needs a copy.
            inputs = {name: array.copy() for name, array in self._read(request).items()}
            self._pool.submit(work, request.get_response_sender(), inputs)

    def _send_all(self, sender: Any, inputs: Tensors, function: Callable[[Tensors], Generator[Outputs]]) -> None:
        lease = inputs.pop(LEASE, None)

        def given_up() -> bool:
            return sender.is_cancelled() or (lease is not None and not is_held(text_of(lease)))

        # One that was given up while it waited for its turn must not begin.
        if given_up():
            return
        with contextlib.closing(function(inputs)) as items:
            for outputs in items:
                if given_up():
                    self._pb.Logger.log_info(f"{self._spec.name}: given up by its caller")
                    return
                if outputs:
                    sender.send(self._response(outputs))

    def _respond(self, make_outputs: Callable[[], Outputs]) -> Any:
        try:
            return self._response(make_outputs())
        except Exception as error:
            return self._error_response(error)

    def _read(self, request: Any) -> Tensors:
        """The request's tensors by name; optional ones that were not sent are missing."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def _response(self, outputs: Outputs) -> Any:
        tensors = [self._tensor(self._spec.output(name), value) for name, value in outputs.items()]
        return self._pb.InferenceResponse(tensors)

    def _tensor(self, spec: TensorSpec, value: npt.ArrayLike) -> Any:
        array = np.asarray(value, dtype=spec.dtype.numpy)
        return self._pb.Tensor(spec.name, np.ascontiguousarray(array))  # a scalar becomes [1]

    def _error_response(self, error: Exception) -> Any:
        told = self._told(error)
        return self._pb.InferenceResponse(error=self._pb.TritonError(told.to_wire(), self._error_code(told)))

    def _error_output(self, error: Exception) -> Any:
        return self._response({ERROR: self._told(error).to_wire()})

    def _told(self, error: Exception) -> AttuneError:
        """What a client may know of an error; the log gets the rest."""
        if isinstance(error, AttuneError):
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
            inputs=[self._tensor(MODELS[name].input(key), value) for key, value in inputs.items()],
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
        return tensors

    def _answered(self, name: str, message: str) -> AttuneError:
        error = from_wire(message)
        if type(error) is ServerError:
            self._pb.Logger.log_error(f"{self._spec.name}: {name} answered: {error}")
        return error


def _in_background(produce: Callable[[], Iterator[Tensors]], name: str, timeout_s: float) -> Iterator[Tensors]:
    """The items of `produce()`, made in a thread, so that a model that died cannot hold its caller for ever.

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

    # A daemon, because a call that never returns must not keep the process alive.
    threading.Thread(target=work, name=f"call-{name}", daemon=True).start()
    while True:
        try:
            item = items.get(timeout=timeout_s)
        except queue.Empty:
            raise RequestTimeout(f"{name} gave no answer within {timeout_s:g} s") from None
        if item is end:
            return
        if isinstance(item, Exception):
            raise item
        yield item
