"""What every `model_repository/<model>/1/model.py` shares: tensors in, one library call, tensors out.

    class TritonPythonModel:
        def initialize(self, args):
            self.triton = Adapter(SPEECH_EMOTION, args, pb_utils)
            self.service = create_service(SPEECH_EMOTION.name, self.triton)  # see `services`

        def execute(self, requests):
            return self.triton.answer_concurrently(requests, self.service.answer)

        def finalize(self):
            self.service.close()
            self.triton.close()

The function that is handed over takes the request's tensors by name, and the context that it works in (`call`); it
returns, or yields, the response's tensors by name. What it raises becomes that request's own error response; the other
requests are not touched.

Every request that runs in a thread takes a place (`places`) or is refused at once; of one whose deadline has passed, or
that nobody waits for any more (`reply`), nothing further is done, wherever it waits. A stream is made no faster than it
is read (`flow`). No wait is without limit, and no tensor leaves or enters with values that are no numbers or that its
declaration rules out.

Triton's `pb_utils` exists only inside the server's stub, so it is passed in: tests pass a fake.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import secrets
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from attune_client.protocol.checks import check_deadline, printable
from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_client.protocol.models import DEADLINE, MODELS, NEXT_PART, PART
from attune_client.protocol.models import LEASE as LEASE_INPUT
from attune_client.protocol.tensors import ModelSpec, Tensors, bytes_tensor, text_of
from attune_ensemble.call import CallContext
from attune_ensemble.serving.allocation import give_back
from attune_ensemble.serving.declared import Outputs, declared_array, declared_outputs, require_sound
from attune_ensemble.serving.flow import AHEAD_BYTES, PART_BYTES, Ahead, Handover
from attune_ensemble.serving.lease import Lease
from attune_ensemble.serving.parts import PartedStreams
from attune_ensemble.serving.places import Places
from attune_ensemble.serving.reply import POLL_S, Reply, Watch

if TYPE_CHECKING:
    from attune_ensemble.serving.own_server import OwnServer

__all__ = ["LEASE", "Adapter", "Outputs"]

LEASE = LEASE_INPUT.name
"""The input that tells a model, called by another one, when its caller has given up."""

_MAX_CONCURRENT, _MAX_WAITING = 16, 16
_CALL_TIMEOUT_S = 300.0
"""How long a called model may take for a response where neither a deadline nor the caller says how long."""

_METRICS_PERIOD_S = 1.0
_LEAST_LEFT_S = 1e-3
"""What is given to a called model at least: a smaller number may become 0 on the wire."""

_FIRST_LOOK_S = 0.005
"""When a stream that is far enough ahead first looks for its reader; then it looks less and less often."""

_MAX_ID = 100


class Answer(Protocol):
    """Makes the outputs of one request."""

    def __call__(self, inputs: Tensors, /, *, context: CallContext) -> Outputs:
        """The outputs by name."""
        ...


class Answers(Protocol):
    """Makes the responses of one request to a decoupled model."""

    def __call__(self, inputs: Tensors, /, *, context: CallContext) -> Generator[Outputs]:
        """The outputs of each response by name."""
        ...


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
        self._ahead_bytes = int(self.settings.get("ahead_bytes", AHEAD_BYTES))
        self._part_bytes = int(self.settings.get("part_bytes", PART_BYTES))
        self._parted = PartedStreams()
        self._watch = Watch(spec.name, self._give_up, pb_utils.Logger.log_error)
        self._own_server: OwnServer | None = None
        self._closing = threading.Event()
        self._publisher: threading.Thread | None = None
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self.folder = Path(args["model_repository"]) / args["model_version"]

    def answer(self, requests: Sequence[Any], function: Callable[[Tensors], Outputs]) -> list[Any]:
        """Answer the requests one after the other; returns the responses that `execute` must return.

        For models that answer in milliseconds: requests wait in Triton's queue, where nothing bounds or cancels them,
        and no context is made for them.
        """

        def respond(request: Any) -> Any:
            try:
                return self._response(function(self._read(request)))
            except BaseException as error:  # one that escapes would fail the other requests too
                return self._error_response(self._told(error, _id_of(request)))

        return [respond(request) for request in requests]

    def answer_concurrently(self, requests: Sequence[Any], function: Answer) -> None:
        """Answer each request in a thread, and let `execute` return at once.

        For models that mostly wait for other models, or whose requests may have to wait for their turn.
        """
        self._start(requests, lambda reply, inputs: self._answered_once(reply, function, inputs))

    def stream(self, requests: Sequence[Any], function: Answers) -> None:
        """Answer each request of a decoupled model in a thread: every item that `function` yields is sent at once.
        An empty one is not: it is a chance to see that the client has gone.

        No further item is asked for while those that were sent are `ahead_bytes` ahead of what the caller's lease says
        was taken; a caller that says nothing is not waited for. For a caller that takes it in parts, the stream waits
        after every `part_bytes` until the next part is asked for.

        When the client cancels, the caller's lease ends, or the deadline passes, the generator is closed, its last item
        dropped, and the stream ends with what `CallContext.check` raises: a stream without an error is a whole one. It
        ends so soon after, too, where `function` blocks, which then goes on unheard.
        """
        self._start(requests, lambda reply, inputs: self._send_all(reply, function(inputs, context=reply.context)))

    def close(self) -> None:
        """End the threads: what a model's `finalize` calls, when it answers no more requests."""
        self._closing.set()
        self._watch.close()
        if self._own_server is not None:
            self._own_server.close()
        if self._publisher is not None:
            self._publisher.join()
        self._pb.Logger.log_info(f"{self._spec.name}: released")

    def publish(self, meanings: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
        """Publish gauges among the server's metrics: `meanings` by name, and their values whenever they are read.

        The server collects what was last written, so a thread writes once a second. When they cannot be read, the last
        ones stay, and the log says so the first time.
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
            for name, value in read().items():
                gauges[name][1].set(value)

        self._publisher = threading.Thread(
            target=self._write_again_and_again, args=(write,), name=f"{self._spec.name}-metrics", daemon=True
        )
        self._publisher.start()

    def _write_again_and_again(self, write: Callable[[], None]) -> None:
        has_failed = False
        while True:
            try:
                write()
            except BaseException as error:
                if not has_failed:
                    self._pb.Logger.log_error(f"{self._spec.name}: its metrics cannot be read: {error!r}")
                has_failed = True
            if self._closing.wait(_METRICS_PERIOD_S):
                return

    def call(
        self,
        name: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        /,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> Tensors:
        """Call another model of the repository, which is given what is left of the context's time.

        The answer is waited for until the deadline, or for `_CALL_TIMEOUT_S` where there is none; in either case no
        longer than `timeout_s`, where that is given.

        Raises:
            RequestCancelled: nobody waits any more for the request of this context.
            RequestTimeout: its deadline has passed, or no answer came in time.
            AttuneError: the one that the model answered; ServerError if it is none of ours.
        """
        with self._passed_on(name, context) as (more, _):
            request = self._request(name, {**inputs, **more}, context.for_stage(name))
            answers = _in_background(lambda: iter([self._tensors(name, request.exec())]), name, context, timeout_s)
            with contextlib.closing(answers):
                return next(answers)

    @property
    def call_stream(self) -> Callable[..., Generator[Tensors, None, None]]:
        """What calls a model that streams: `call_stream(name, inputs, context=context, timeout_s=None)`.

        It asks at the server's own port (`own_server`) and yields the responses as they come. That model stays at most
        a window ahead of whoever iterates, and closing the iterator stops it. Each response, be it the first or a later
        one, is waited for as long as `call` waits.

        Raises:
            ServerUnavailable: nobody answers at that port; where the environment does not tell it, already when
                this is looked up.
            RequestCancelled: as `call` does.
            RequestTimeout: the deadline has passed, or a response did not come in time.
            AttuneError: as `call` does.
        """
        if self._own_server is None:
            # Here, for it takes 20 MB, and one process alone needs it.
            from attune_ensemble.serving.own_server import OwnServer, own_url

            self._own_server = OwnServer(own_url(os.environ), self._answered, self._pb.Logger.log_error)
        return partial(self._call_stream, self._own_server)

    def _call_stream(
        self,
        own_server: OwnServer,
        name: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        /,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> Generator[Tensors, None, None]:
        model = MODELS[name]
        with self._passed_on(name, context) as (more, lease):
            assert lease is not None, "a model that streams takes a lease"
            lease.taken(0)
            given = _declared_inputs(model, {**inputs, **more})
            responses = own_server.ask(model, given, context.for_stage(name).request_id)
            try:
                with contextlib.closing(_in_background(lambda: iter(responses), name, context, timeout_s)) as answers:
                    for count, tensors in enumerate(answers, start=1):
                        if tensors:
                            require_sound(model, tensors)
                            yield tensors
                        lease.taken(count)
            finally:
                responses.abandon()

    @contextlib.contextmanager
    def _passed_on(self, name: str, context: CallContext) -> Iterator[tuple[Tensors, Lease | None]]:
        """A lease and the time that is left as inputs of the model to be called, as far as it takes them; the lease.

        Raises what `CallContext.check` raises: for a request that is over no other model is called. A model that calls
        one that it does not declare to call is a fault: nobody would know that it needs that one.
        """
        if name not in {callee.name for callee in self._spec.calls}:
            raise ServerError(f"{self._spec.name} does not declare that it calls {name}")
        context.check(name)
        inputs, left_s = MODELS[name].inputs, context.left_s()
        deadline: Tensors = {}
        if left_s is not None and DEADLINE in inputs:
            deadline[DEADLINE.name] = np.array([max(left_s, _LEAST_LEFT_S)], np.float32)
        if LEASE_INPUT not in inputs:
            yield deadline, None
            return
        with Lease() as lease:
            yield deadline | {LEASE: bytes_tensor(lease.token)}, lease

    def _start(self, requests: Sequence[Any], respond: Callable[[Reply, Tensors], Any]) -> None:
        """Let `respond` make the last response of each request, or None where there is none, in a thread."""
        for request in requests:
            final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            reply = Reply(request.get_response_sender(), final, _id_of(request), self._pb.Logger.log_error)
            try:
                self._begin(reply, request, respond)
            except Exception as error:
                self._finish(reply, self._failure(reply, error))

    def _begin(self, reply: Reply, request: Any, respond: Callable[[Reply, Tensors], Any]) -> None:
        # The request's memory is given back when `execute` returns, so the thread needs a copy.
        inputs = {name: array.copy() for name, array in self._read(request).items()}
        lease, part = inputs.pop(LEASE, None), inputs.pop(PART.name, None)
        if lease is not None:
            reply.depend_on(text_of(lease))
        if part is not None:
            reply.parts_for = _lease_of_parts(lease)
            if (number := int(part.flat[0])) > 0:
                self._parted.ask(reply.parts_for, number, reply)
                return
        if (deadline := inputs.pop(DEADLINE.name, None)) is not None:
            reply.limit(check_deadline(deadline.flat[0]))
        work = partial(self._serve, reply, partial(respond, reply, inputs))
        self._watch.add(reply)
        self._places.take(work)
        # After it has its place: whoever is told before could not give it back.
        reply.when_abandoned(lambda: self._withdraw(reply, work))

    def _serve(self, reply: Reply, respond: Callable[[], Any]) -> None:
        response = None
        try:
            reply.look()  # one that was given up while it waited for its turn must not begin
            reply.context.check(self._spec.name)
            response = respond()
        except BaseException as error:  # a panic of a library in Rust is no Exception, and must be told as well
            response = self._failure(reply, error)
        finally:
            self._finish(reply, response)
            if self._spec.decoupled:
                give_back()

    def _withdraw(self, reply: Reply, work: Callable[[], None]) -> None:
        """Give up a request that waits; one at work sees for itself, or is given up when it is overdue."""
        if self._places.withdraw(work):
            self._give_up(reply)

    def _give_up(self, reply: Reply) -> None:
        """Answer a request that nobody waits for any more, whatever is being done for it."""
        try:
            reply.context.check(self._spec.name)
        except AttuneError as error:
            self._finish(reply, self._failure(reply, error))

    def _finish(self, reply: Reply, response: Any) -> None:
        self._watch.remove(reply)
        try:
            reply.finish(response)
        except BaseException as error:  # the server stops, or will not have this response: nobody can be told
            self._pb.Logger.log_error(f"{self._spec.name}: the last response could not be sent: {error}")

    def _answered_once(self, reply: Reply, function: Answer, inputs: Tensors) -> Any:
        outputs = function(inputs, context=reply.context)
        reply.context.check(self._spec.name)
        return self._response(outputs)

    def _send_all(self, reply: Reply, items: Generator[Outputs]) -> None:
        ahead = Ahead(self._ahead_bytes, reply.taken)
        number, part_bytes = 0, 0
        with contextlib.closing(items):
            for outputs in items:
                reply.look()
                reply.context.check(self._spec.name)
                if outputs:
                    arrays = declared_outputs(self._spec, outputs)
                    num_bytes = sum(array.nbytes for array in arrays.values())
                    reply.send(self._response_of(arrays))
                    ahead.sent(num_bytes)
                    self._wait_for_reader(reply.context, ahead)
                    part_bytes += num_bytes
                    if reply.parts_for is not None and part_bytes >= self._part_bytes:
                        number, part_bytes = number + 1, 0
                        self._wait_for_next_part(reply, reply.parts_for, number)

    def _wait_for_next_part(self, reply: Reply, lease: str, number: int) -> None:
        """End a part, and return when the next one is asked for; raises what `CallContext.check` raises."""
        response = self._response({NEXT_PART.name: [number]})
        with self._parted.expecting(lease, number, reply) as asked, reply.context.on_cancel(asked.set):
            reply.end_part(response)
            asked.wait()
        reply.context.check(self._spec.name)

    def _wait_for_reader(self, context: CallContext, ahead: Ahead) -> None:
        """Return when the stream may go on; raises what `CallContext.check` raises."""
        if not ahead.is_far_enough():
            return
        given_up, look_s = threading.Event(), _FIRST_LOOK_S
        with context.on_cancel(given_up.set):
            while ahead.is_far_enough():
                left_s = context.left_s()
                given_up.wait(look_s if left_s is None else min(look_s, left_s))
                context.check(self._spec.name)
                look_s = min(2 * look_s, POLL_S)

    def _read(self, request: Any) -> Tensors:
        """The request's tensors by name; optional ones that were not sent are missing."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def _response(self, outputs: Outputs) -> Any:
        return self._response_of(declared_outputs(self._spec, outputs))

    def _response_of(self, arrays: Tensors) -> Any:
        return self._pb.InferenceResponse([self._pb.Tensor(name, array) for name, array in arrays.items()])

    def _failure(self, reply: Reply, error: BaseException) -> Any:
        """The last response of a request that failed; there is one whatever goes wrong in making it.

        An error that is not final leaves a calling model, and the server when it stops, waiting for ever.
        """
        try:
            return self._error_response(self._told(error, reply.context.request_id))
        except BaseException as unable:
            self._pb.Logger.log_error(f"{self._spec.name}: its error could not be told: {unable!r}")
            return self._error_response(self._unexplained())

    def _error_response(self, told: AttuneError) -> Any:
        return self._pb.InferenceResponse(error=self._pb.TritonError(told.to_wire(), self._error_code(told)))

    def _told(self, error: BaseException, request_id: str) -> AttuneError:
        """What a client may know of an error; the log gets the rest."""
        if isinstance(error, RequestCancelled):
            self._pb.Logger.log_info(f"{self._spec.name}: given up by its caller: request {request_id}")
        if isinstance(error, RequestTimeout):
            self._pb.Logger.log_info(f"{self._spec.name}: not done in time: request {request_id}: {error}")
        if isinstance(error, ServerBusy) and error.retry_after_s is None:
            return ServerBusy(str(error), self._places.retry_after_s)
        # One without a code of its own is of a library of ours, and may name paths.
        if isinstance(error, AttuneError) and error.code != AttuneError.code:
            return error
        trace = "".join(traceback.format_exception(error))
        self._pb.Logger.log_error(f"{self._spec.name}: request {request_id}: {trace}")
        return self._unexplained()

    def _unexplained(self) -> ServerError:
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

    def _request(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], context: CallContext) -> Any:
        model = MODELS[name]
        return self._pb.InferenceRequest(
            model_name=name,
            request_id=context.request_id,
            requested_output_names=[tensor.name for tensor in model.outputs],
            inputs=[self._pb.Tensor(key, value) for key, value in _declared_inputs(model, inputs).items()],
            # Without this a model on the GPU would answer with memory that numpy cannot read.
            preferred_memory=self._pb.PreferredMemory(self._pb.TRITONSERVER_MEMORY_CPU, 0),
        )

    def _tensors(self, name: str, response: Any) -> Tensors:
        """The tensors of a called model's response, copied out of the memory that it shares with the server."""
        if response.has_error():
            raise self._answered(name, response.error().message())
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in response.output_tensors()}
        require_sound(MODELS[name], tensors)
        return tensors

    def _answered(self, name: str, message: str) -> AttuneError:
        error = from_wire(message)
        if type(error) is ServerError:
            self._pb.Logger.log_error(f"{self._spec.name}: {name} answered: {message}")
        return error


def _declared_inputs(model: ModelSpec, inputs: Mapping[str, npt.ArrayLike]) -> Tensors:
    return {name: declared_array(model.input(name), value) for name, value in inputs.items()}


def _lease_of_parts(lease: npt.NDArray[Any] | None) -> str:
    if lease is None:
        raise InvalidOption(f"{PART.name} is for those who hold a lease")
    return text_of(lease)


def _id_of(request: Any) -> str:
    """The id that the client gave a request, or else a new one; short and on one line, for it stands in logs."""
    return printable(request.request_id()[:_MAX_ID]) or secrets.token_hex(4)


def _in_background(
    produce: Callable[[], Iterator[Tensors]], name: str, context: CallContext, timeout_s: float | None
) -> Generator[Tensors]:
    """The items of `produce()`, made in a thread: neither a model that died nor one that is slow to answer can hold a
    caller for ever, or beyond the deadline, or one that nobody waits for any more.

    Only a few wait to be taken. When nobody takes them any more the thread goes on to the end, and drops them: Triton
    keeps a response until it is read.
    """
    if timeout_s is None:
        timeout_s = _CALL_TIMEOUT_S if context.deadline is None else math.inf
    end = object()
    items = Handover()

    def work() -> None:
        try:
            for item in produce():
                items.put(item)
            items.put(end)
        except BaseException as error:  # whoever waits has to hear of any
            items.put(error)

    with contextlib.closing(items), context.on_cancel(lambda: items.put_at_once(end)):
        context.check(name)
        # A daemon, because a call that never returns must not keep the process alive.
        threading.Thread(target=work, name=f"call-{name}", daemon=True).start()
        while True:
            left_s = context.left_s()
            wait_s = timeout_s if left_s is None else min(timeout_s, left_s)
            try:
                item = items.get(wait_s)
            except queue.Empty:
                context.check(name)
                if wait_s < timeout_s:
                    continue  # a moment too early
                raise RequestTimeout(f"{name} gave no answer within {timeout_s:g} s") from None
            context.check(name)
            if item is end:
                return
            if isinstance(item, BaseException):
                try:
                    raise item
                finally:
                    del item  # it holds this frame, and so the request's tensors, until somebody collects the circle
            yield item
