"""The guard's side of the protocol: every method that clients may call, and what becomes of a request."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)
from attune_ensemble.serving.guard.admission import Admission
from attune_ensemble.serving.guard.callers import Caller, Share, caller_of
from attune_ensemble.serving.guard.checks import MAX_ID, check_request, deadline_of, inputs_of
from attune_ensemble.serving.guard.failures import Failure, NotPermitted, anew, error_from_rpc, failure_of
from attune_ensemble.serving.guard.flights import ANSWERED, Flight
from attune_ensemble.serving.guard.forwarding import SERVICE, Upstream
from attune_ensemble.serving.guard.measures import Measures
from attune_ensemble.serving.guard.parts import continuation, with_lease
from attune_ensemble.serving.guard.receiving import Context, ReaderStalled, Reception, Writer
from attune_ensemble.serving.guard.refusals import Refusals, Tell
from attune_ensemble.serving.guard.requests import Request, parsed
from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import Signature, needed_by
from attune_ensemble.serving.lease import Lease

__all__ = ["Service"]

_QUESTIONS = {
    "ServerMetadata": service_pb2.ServerMetadataRequest,
    "ModelMetadata": service_pb2.ModelMetadataRequest,
    "ModelConfig": service_pb2.ModelConfigRequest,
    "ModelStatistics": service_pb2.ModelStatisticsRequest,
    "RepositoryIndex": service_pb2.RepositoryIndexRequest,
}
_CLOSED = (
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
_MAX_QUESTION_BYTES = 4096
REFUSED_KEY = "attune-refused"
"""Trailing metadata of a call that ended before anything was done for it, so that another server may be asked at once.
One that was in flight when a model died does not have it: it may be what the model died of."""

_QUESTIONS_AT_ONCE = 128
"""Beside the requests, so that whoever asks how the server is hears it."""

_SOON_S = 1.0
"""A message that has come in this time needs no place among those that take long."""

Unary = Callable[[Caller, Context], Awaitable[bytes]]


class Service(grpc.GenericRpcHandler):
    """Answers every call; all of it on one event loop.

    `refusal` is what new requests are told, None where they are taken.
    """

    def __init__(self, settings: GuardSettings, tell: Tell) -> None:
        self._settings, self._tell = settings, tell
        share = settings.client_share
        self._calls = Share("calls at once", settings.max_calls, share)
        self._questions = Share("questions at once", _QUESTIONS_AT_ONCE, share)
        self._uploads = Share("messages on their way for long", settings.uploads, share)
        self._more_uploads = Share("streams that may send more", settings.uploads, share)
        self._admission = Admission(settings)
        self._refusals = Refusals(tell)
        self._upstream: Upstream | None = None
        self._signatures: Mapping[str, Signature] = {}
        self._lost: dict[str, AttuneError] = {}
        self._flights: set[Flight] = set()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._measures = Measures()
        self.refusal: AttuneError | None = ServerUnavailable("the server starts; its models are being loaded")
        self._methods = self._handlers()

    # What the supervisor says

    def open(self, upstream: Upstream, signatures: Mapping[str, Signature]) -> None:
        """Forward to that server from now on."""
        self._upstream, self._signatures = upstream, signatures
        self._lost.clear()
        self.refusal = None

    def refuse(self, error: AttuneError) -> None:
        """Take no new requests."""
        self.refusal = error

    def close(self, error: AttuneError) -> None:
        """Take no new requests, and end every one in flight."""
        self.refusal = error
        for flight in tuple(self._flights):
            flight.end(error, is_dead=True)

    def lose(self, models: Collection[str], error: AttuneError) -> None:
        """These models are away: whoever needs them is told so."""
        for name in models:
            self._lost[name] = error
        for flight in tuple(self._flights):
            if not flight.needs(self._signatures).isdisjoint(models):
                flight.end(error, is_dead=flight.model in models)

    def regain(self, models: Collection[str]) -> None:
        """These models are back."""
        for name in models:
            self._lost.pop(name, None)

    @property
    def in_flight(self) -> int:
        """Requests that are not yet answered."""
        return len(self._flights)

    def figures(self) -> dict[str, float]:
        """Samples for Prometheus by name and labels; `METRICS` says what each is."""
        flying = Counter(flight.model for flight in self._flights)
        samples = {"attune_guard_load": 0.0, "attune_guard_calls": float(self._calls.count)}
        for name, signature in self._signatures.items():
            label, slots = f'{{model="{name}"}}', self._admission.slots(signature)
            samples[f"attune_guard_in_flight{label}"] = float(flying[name])
            samples[f"attune_guard_slots{label}"] = float(slots)
            samples[f"attune_guard_waiting{label}"] = float(max(0, flying[name] - slots))
            samples["attune_guard_load"] = max(samples["attune_guard_load"], flying[name] / slots)
        for (model, outcome), count in self._outcomes.items():
            samples[f'attune_guard_requests_total{{model="{model}",outcome="{outcome}"}}'] = float(count)
        return samples | self._measures.samples()

    # What clients call

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None for one that there is not."""
        return self._methods.get(handler_call_details.method)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        unary: dict[str, Unary] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ModelInfer": self._infer,
        }
        unary |= {name: self._asking(name) for name in _QUESTIONS}
        unary["RepositoryIndex"] = self._index
        unary |= dict.fromkeys(_CLOSED, self._closed)
        handlers = {name: self._unary(answer) for name, answer in unary.items()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return {f"/{SERVICE}/{name}": each for name, each in handlers.items()}

    def _unary(self, answer: Unary) -> grpc.RpcMethodHandler:
        """A handler that asks for the message itself, and tells an error as the call's status."""

        async def handle(_: object, context: Context) -> bytes:
            try:
                return await answer(self._caller(context), context)
            except Exception as error:
                failure = self._failure_of(error)
            return await failure.abort(context)

        return grpc.stream_unary_rpc_method_handler(handle)

    def _caller(self, context: Context) -> Caller:
        return caller_of(context, trusts_metadata=self._settings.trust_client_metadata)

    def _failure_of(self, error: Exception) -> Failure:
        """What a client is told of any error; of a fault of ours the operator is told the rest."""
        if isinstance(error, AttuneError):
            return failure_of(error)
        if isinstance(error, grpc.aio.AioRpcError):
            return failure_of(error_from_rpc(error, "the server"))
        self._tell("guard_failed", error="".join(traceback.format_exception(error)))
        return failure_of(ServerError("the request failed; see the server's log"))

    # Messages

    async def _message(self, caller: Caller, context: Context) -> bytes:
        """The message of a call; raises as `_complete`, and `InvalidRequest` where none comes."""
        message = await self._complete(Reception(context), caller)
        if message is None:
            raise InvalidRequest("the call came without a message")
        return message

    async def _complete(self, reception: Reception, caller: Caller) -> bytes | None:
        """What is received, None at the end of a stream.

        Raises:
            RequestTimeout: it did not come whole in time.
            ServerBusy: it takes long, and too many others do.
        """
        if not await reception.is_complete(_SOON_S):
            with self._uploads.place(caller):
                if not await reception.is_complete(self._settings.message_s):
                    raise RequestTimeout(f"no whole message came within {self._settings.message_s:g} s")
        return reception.message()

    # Questions

    async def _question(self, caller: Caller, context: Context) -> bytes:
        """The message of a question; `InvalidRequest` for one that is too large."""
        with self._questions.place(caller):
            message = await self._message(caller, context)
        if len(message) > _MAX_QUESTION_BYTES:
            raise InvalidRequest(f"a question has at most {_MAX_QUESTION_BYTES} bytes, not {len(message)}")
        return message

    async def _live(self, caller: Caller, context: Context) -> bytes:
        await self._question(caller, context)
        return bytes(service_pb2.ServerLiveResponse(live=True).SerializeToString())

    async def _ready(self, caller: Caller, context: Context) -> bytes:
        await self._question(caller, context)
        ready = self.refusal is None and not self._lost
        return bytes(service_pb2.ServerReadyResponse(ready=ready).SerializeToString())

    async def _model_ready(self, caller: Caller, context: Context) -> bytes:
        name = parsed(service_pb2.ModelReadyRequest, await self._question(caller, context)).name
        ready = self.refusal is None and name in self._signatures and self._loss_of(name) is None
        return bytes(service_pb2.ModelReadyResponse(ready=ready).SerializeToString())

    async def _index(self, caller: Caller, context: Context) -> bytes:
        answer = await self._asking("RepositoryIndex")(caller, context)
        index = service_pb2.RepositoryIndexResponse.FromString(answer)
        for model in index.models:
            if (error := self._loss_of(model.name)) is not None:
                model.state, model.reason = "UNAVAILABLE", str(error)
        return bytes(index.SerializeToString())

    def _asking(self, method: str) -> Unary:
        async def ask(caller: Caller, context: Context) -> bytes:
            message = await self._question(caller, context)
            parsed(_QUESTIONS[method], message)
            return await self._require_upstream().ask(method, message)

        return ask

    async def _closed(self, caller: Caller, context: Context) -> bytes:
        raise NotPermitted("this method is not for clients: models, memory regions, traces and logs are the operator's")

    def _require_upstream(self) -> Upstream:
        if self._upstream is None:
            raise anew(self.refusal or ServerUnavailable("the server is not there"))
        return self._upstream

    # Requests

    async def _infer(self, caller: Caller, context: Context) -> bytes:
        has_begun = False
        try:
            with self._calls.place(caller):
                request = Request.of(await self._message(caller, context))
                with self._admit(request, caller, context) as flight:
                    has_begun = True
                    if flight.signature.decoupled:
                        raise InvalidRequest(f"{flight.model} answers with a stream: call ModelStreamInfer")
                    return await flight.answer()
        except ServerUnavailable:
            if not has_begun:
                context.set_trailing_metadata(((REFUSED_KEY, "1"),))
            raise

    async def _stream(self, _: object, context: Context) -> None:
        failure: Failure | None = None
        try:
            caller = self._caller(context)
            with self._calls.place(caller):
                await self._answer_stream(caller, context)
        except* Exception as group:
            failure = self._failure_of(_first_of(group))
        if failure is not None:
            await failure.abort(context)

    async def _answer_stream(self, caller: Caller, context: Context) -> None:
        """Several requests of a stream are worked for at once; their responses come as they are made."""
        writer = Writer(context, self._settings.reader_s)
        working: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            message = await self._complete(Reception(context), caller)
            while message is not None:
                task = group.create_task(self._answer_one(Request(message), writer, caller, context))
                working.add(task)
                task.add_done_callback(working.discard)
                message = None
                while len(working) >= self._settings.stream_requests:
                    await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                message = await self._next_message(caller, context, working)

    async def _next_message(
        self, caller: Caller, context: Context, working: Collection[asyncio.Task[None]]
    ) -> bytes | None:
        """The next message of a stream, None at its end; raises as `_complete`.

        While something is at work it is received where there is a place for that, and else afterwards.
        """
        reception: Reception | None = None
        with suppress(ServerBusy), self._more_uploads.place(caller):
            reception = Reception(context)
            if await reception.is_complete_during(working):
                return reception.message()
        if reception is None and working:
            await asyncio.wait(working)
        return await self._complete(reception or Reception(context), caller)

    async def _answer_one(self, request: Request, writer: Writer, caller: Caller, context: Context) -> None:
        """Answer a request of a stream; an error is a response of its own."""
        request_id, model = "", ""
        try:
            request.unpack()
            request_id, model = request.head.id[:MAX_ID], request.head.model_name[:MAX_ID]
            with self._admit(request, caller, context) as flight:
                await flight.answer_stream(writer)
            return
        except ReaderStalled:
            raise
        except Exception as error:
            failure = self._failure_of(error)
        finally:
            request.release()
        await writer.write(_error_response(failure.text, request_id, model))

    @contextmanager
    def _admit(self, request: Request, caller: Caller, context: Context) -> Iterator[Flight]:
        """The flight of a request that is checked and has a place, as long as the context lasts; counts its outcome.

        The request holds nothing any more then. What its flight leaves behind keeps its place until that has ended.
        """
        name = request.head.model_name if request.head.model_name in self._signatures else "unknown"
        outcome = "cancelled"
        try:
            with ExitStack() as held:
                flight = self._prepare(request, caller, context, held)
                try:
                    yield flight
                    if flight.outcome == ANSWERED:
                        flight.place.is_answered = True
                        flight.timed.answered()
                finally:
                    self._flights.discard(flight)
                    if flight.lingering is not None and not flight.is_dead:
                        release = held.pop_all().close
                        flight.lingering.add_done_callback(lambda _: release())
            outcome = flight.outcome
        except AttuneError as error:
            outcome = error.code
            if isinstance(error, ServerBusy):
                self._refusals.add(name, str(error))
            raise
        finally:
            request.release()
            self._outcomes[name, outcome] += 1

    def _prepare(self, request: Request, caller: Caller, context: Context, held: ExitStack) -> Flight:
        """Check a request, and take on `held` what it needs: a place, and a lease where its model looks at one."""
        signature = self._signature_of(request)
        self._admission.check(signature, caller.client, len(request.message))
        check_request(request, signature)
        left_s = _least(context.time_remaining(), deadline_of(request))
        place = held.enter_context(self._admission.place(signature, caller.client, len(request.message), left_s))
        lease = held.enter_context(Lease()) if signature.takes_lease else None
        message, further = request.message, None
        if lease is not None:
            lease.taken(0)  # what streams for it stays near what its client has taken
            message = with_lease(request, lease, 0 if signature.in_parts else None)
            further = continuation(request, signature) if signature.in_parts else None
        given = inputs_of(request)
        request.release()
        timed = self._measures.begin(signature)
        flight = Flight(signature, given, message, self._require_upstream(), place, timed, lease, further)
        self._flights.add(flight)
        return flight

    def _signature_of(self, request: Request) -> Signature:
        """The signature of the model that a request is for, if that may be asked now."""
        name, version = request.head.model_name, request.head.model_version
        if self.refusal is not None:
            raise anew(self.refusal)
        signature = self._signatures.get(name)
        if signature is None:
            raise InvalidRequest(f"there is no model {quote(name)}; there are {', '.join(sorted(self._signatures))}")
        if version and version != signature.version:
            raise InvalidRequest(f"{name} is served in version {signature.version}, not {quote(version)}")
        if (error := self._loss_of(name, inputs_of(request))) is not None:
            raise anew(error)
        return signature

    def _loss_of(self, model: str, given: Collection[str] = ()) -> AttuneError | None:
        """Why a model cannot answer a request with these inputs at present, or any without them; None where it can."""
        if not self._lost:
            return None
        needed = needed_by(model, self._signatures, given)
        return next((error for name, error in self._lost.items() if name in needed), None)


def _first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first of the errors in a group of them."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _error_response(text: str, request_id: str, model: str) -> bytes:
    response = service_pb2.ModelStreamInferResponse(error_message=text)
    response.infer_response.id = request_id
    response.infer_response.model_name = model
    return bytes(response.SerializeToString())


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)
