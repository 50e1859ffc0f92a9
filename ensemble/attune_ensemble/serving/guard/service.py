"""The guard's side of the protocol: every method that clients may call, and what becomes of a request."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)
from attune_ensemble.serving.guard.admission import Admission
from attune_ensemble.serving.guard.checks import check_request, deadline_of, music_of
from attune_ensemble.serving.guard.forwarding import SERVICE, Upstream, answered, raised, with_lease
from attune_ensemble.serving.guard.measures import Measures, Timed
from attune_ensemble.serving.guard.settings import GuardSettings
from attune_ensemble.serving.guard.signatures import Signature, dependents
from attune_ensemble.serving.lease import Lease

__all__ = ["Service"]

Tell = Callable[..., None]
Context = Any
"""What grpc.aio hands to a handler: a `ServicerContext`, which has no types of its own."""

CLIENT_KEY = "attune-client"
"""Metadata by which a client may say who it is; without it each connection is a client."""

REFUSED_KEY = "attune-refused"
"""Trailing metadata of a call that ended before anything was done for it, so that another server may be asked at once.
One that was in flight when a model died does not have it: it may be what the model died of."""

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
_ERROR_TAG = b"\x0a"
"""With it begins a message of a stream that carries an error."""

_STATUS: tuple[tuple[type[AttuneError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (RequestTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RequestCancelled, grpc.StatusCode.CANCELLED),
    (AttuneError, grpc.StatusCode.INTERNAL),
)


class Service(grpc.GenericRpcHandler):
    """Answers every call; all of it on one event loop.

    `refusal` is what new requests are told, None where they are taken.
    """

    def __init__(self, settings: GuardSettings, tell: Tell) -> None:
        self._settings, self._tell = settings, tell
        self._admission = Admission(settings)
        self._upstream: Upstream | None = None
        self._signatures: Mapping[str, Signature] = {}
        self._lost: dict[str, AttuneError] = {}
        self._flights: set[_Flight] = set()
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
            flight.end(error)

    def lose(self, models: Collection[str], error: AttuneError) -> None:
        """These models, and what depends on them, are away."""
        lost = dependents(models, self._signatures)
        for name in models:
            self._lost[name] = error
        for flight in tuple(self._flights):
            if flight.model in models or flight.needs & lost:
                flight.end(error)

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
        samples = {"attune_guard_load": 0.0}
        for name, signature in self._signatures.items():
            label, slots = f'{{model="{name}"}}', self._admission.slots(signature)
            samples[f"attune_guard_in_flight{label}"] = float(flying[name])
            samples[f"attune_guard_slots{label}"] = float(slots)
            samples[f"attune_guard_waiting{label}"] = float(max(0, flying[name] - slots))
            samples["attune_guard_load"] = max(samples["attune_guard_load"], flying[name] / slots)
        for (model, outcome), count in self._outcomes.items():
            samples[f'attune_guard_requests_total{{model="{model}",outcome="{outcome}"}}'] = float(count)
        samples["attune_guard_music_in_flight_seconds"] = self._admission.music_s
        samples["attune_guard_music_limit_seconds"] = self._settings.music_s
        return samples | self._measures.samples()

    # What clients call

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None for one that there is not."""
        return self._methods.get(handler_call_details.method)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        unary: dict[str, Callable[[bytes, Context], Coroutine[Any, Any, bytes]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ModelInfer": self._infer,
        }
        unary |= {name: self._asking(name) for name in _QUESTIONS}
        unary["RepositoryIndex"] = self._index
        unary |= dict.fromkeys(_CLOSED, self._closed)
        handlers = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in unary.items()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return {f"/{SERVICE}/{name}": each for name, each in handlers.items()}

    async def _live(self, message: bytes, context: Context) -> bytes:
        return bytes(service_pb2.ServerLiveResponse(live=True).SerializeToString())

    async def _ready(self, message: bytes, context: Context) -> bytes:
        ready = self.refusal is None and not self._lost
        return bytes(service_pb2.ServerReadyResponse(ready=ready).SerializeToString())

    async def _model_ready(self, message: bytes, context: Context) -> bytes:
        async def answer() -> bytes:
            name = _parsed(service_pb2.ModelReadyRequest, message).name
            ready = self.refusal is None and name in self._signatures and self._loss_of(name) is None
            return bytes(service_pb2.ModelReadyResponse(ready=ready).SerializeToString())

        return await self._told(answer(), context)

    async def _index(self, message: bytes, context: Context) -> bytes:
        async def answer() -> bytes:
            index = service_pb2.RepositoryIndexResponse.FromString(await self._asked("RepositoryIndex", message))
            for model in index.models:
                if (error := self._loss_of(model.name)) is not None:
                    model.state, model.reason = "UNAVAILABLE", str(error)
            return bytes(index.SerializeToString())

        return await self._told(answer(), context)

    def _asking(self, method: str) -> Callable[[bytes, Context], Coroutine[Any, Any, bytes]]:
        async def ask(message: bytes, context: Context) -> bytes:
            return await self._told(self._asked(method, message), context)

        return ask

    async def _asked(self, method: str, message: bytes) -> bytes:
        if len(message) > _MAX_QUESTION_BYTES:
            raise InvalidRequest(f"{method} takes at most {_MAX_QUESTION_BYTES} bytes, not {len(message)}")
        _parsed(_QUESTIONS[method], message)
        return await self._require_upstream().ask(method, message)

    async def _closed(self, message: bytes, context: Context) -> bytes:
        error = InvalidRequest(
            "this method is not for clients: models, memory regions, traces and logs are the operator's"
        )
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.to_wire())
        raise AssertionError("abort raises")

    def _require_upstream(self) -> Upstream:
        if self._upstream is None:
            raise self.refusal or ServerUnavailable("the server is not there")
        return self._upstream

    # Requests

    async def _infer(self, message: bytes, context: Context) -> bytes:
        begun = False

        async def answer() -> bytes:
            nonlocal begun
            request = _parsed(service_pb2.ModelInferRequest, message)
            with self._taken(request, message, context) as flight:
                begun = True
                if flight.signature.decoupled:
                    raise InvalidRequest(f"{flight.model} answers with a stream: call ModelStreamInfer")
                call = flight.upstream.infer(flight.message)
                return bytes(await flight.wait_for(call, _awaited(call)))

        return await self._told(answer(), context, is_untouched=lambda: not begun)

    async def _stream(self, requests: Any, context: Context) -> None:
        """Every request of a stream is worked for at once; their responses come as they are made."""
        writing = asyncio.Lock()

        async def write(response: bytes) -> None:
            async with writing:
                await context.write(response)

        async with asyncio.TaskGroup() as group:
            while (message := await context.read()) is not grpc.aio.EOF:
                group.create_task(self._stream_one(bytes(message), context, write))

    async def _stream_one(self, message: bytes, context: Context, write: Callable[[bytes], Awaitable[None]]) -> None:
        request_id, model = "", ""
        try:
            request = _parsed(service_pb2.ModelInferRequest, message)
            request_id, model = request.id, request.model_name
            with self._taken(request, message, context) as flight:
                call = flight.upstream.stream(flight.message)
                await flight.wait_for(call, _pump(call, flight, write))
        except AttuneError as error:
            await write(_error_response(error, request_id, model))
        except Exception as error:
            await write(_error_response(self._unexplained(error), request_id, model))

    async def _told(
        self, answer: Awaitable[bytes], context: Context, is_untouched: Callable[[], bool] = lambda: False
    ) -> bytes:
        """The answer; an error ends the call with its status and, where it says so, when to try again, here or at
        another server."""
        try:
            return await answer
        except AttuneError as error:
            told = error
        except grpc.aio.AioRpcError as error:
            told = raised(error, "the server")
        except Exception as error:
            told = self._unexplained(error)
        trailing = {}
        if isinstance(told, ServerBusy) and told.retry_after_s is not None:
            trailing["retry-after"] = str(told.retry_after_s)
        if isinstance(told, ServerUnavailable) and is_untouched():
            trailing[REFUSED_KEY] = "1"
        context.set_trailing_metadata(tuple(trailing.items()))
        code = next(code for kind, code in _STATUS if isinstance(told, kind))
        await context.abort(code, told.to_wire())
        raise AssertionError("abort raises")

    def _unexplained(self, error: Exception) -> ServerError:
        """What a client may know of a fault of ours; the operator is told the rest."""
        self._tell("guard_failed", error="".join(traceback.format_exception(error)))
        return ServerError("the request failed; see the server's log")

    @contextmanager
    def _taken(self, request: service_pb2.ModelInferRequest, message: bytes, context: Context) -> Iterator[_Flight]:
        """The flight of a request that is checked and has a place, as long as the context lasts; counts its outcome."""
        name = request.model_name if request.model_name in self._signatures else "unknown"
        outcome = "cancelled"
        try:
            with ExitStack() as stack:
                signature = self._checked(request)
                timed = self._measures.begin(signature)
                left_s = _least(context.time_remaining(), deadline_of(request))
                music_s = music_of(request, signature)
                place = stack.enter_context(
                    self._admission.place(signature, _client_of(context), len(message), left_s, music_s)
                )
                lease = stack.enter_context(Lease()) if signature.takes_lease else None
                if lease is not None:
                    lease.taken(0)  # what streams for it stays near what its client has taken
                    message = with_lease(request, message, lease)
                request.Clear()  # what it holds is in the message as well
                flight = _Flight(signature, message, self._require_upstream(), lease, timed)
                self._flights.add(flight)
                stack.callback(self._flights.discard, flight)
                yield flight
                place.is_answered = True
                timed.answered()
            outcome = flight.outcome
        except AttuneError as error:
            outcome = error.code
            if isinstance(error, ServerBusy):
                self._tell("refused", model=name, reason=str(error))
            raise
        except grpc.aio.AioRpcError as error:
            told = raised(error, name)
            outcome = told.code
            raise told from None
        finally:
            self._outcomes[name, outcome] += 1

    def _checked(self, request: service_pb2.ModelInferRequest) -> Signature:
        if self.refusal is not None:
            raise self.refusal
        signature = self._signatures.get(request.model_name)
        if signature is None:
            raise InvalidRequest(
                f"there is no model {quote(request.model_name)}; there are {', '.join(sorted(self._signatures))}"
            )
        if request.model_version and request.model_version != signature.version:
            raise InvalidRequest(
                f"{signature.name} is served in version {signature.version}, not {quote(request.model_version)}"
            )
        check_request(request, signature)
        if (error := self._loss_of(signature.name)) is not None:
            raise error
        return signature

    def _loss_of(self, model: str) -> AttuneError | None:
        """Why a model cannot answer at present; None where it can."""
        return next(
            (error for name, error in self._lost.items() if model in dependents([name], self._signatures)), None
        )


class _Flight:
    """One request that was handed on: `end` ends it with an error, whatever its model does."""

    def __init__(
        self, signature: Signature, message: bytes, upstream: Upstream, lease: Lease | None, timed: Timed
    ) -> None:
        self.signature, self.message, self.upstream = signature, message, upstream
        self.lease, self.timed = lease, timed
        self.has_begun = False
        self.is_over = False
        self.outcome = "answered"
        self._ended: asyncio.Future[AttuneError] = asyncio.get_running_loop().create_future()

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.signature.name

    @property
    def needs(self) -> frozenset[str]:
        """The models that it still needs, beside its own."""
        return self.signature.uses_streaming if self.has_begun else self.signature.uses

    def end(self, error: AttuneError) -> None:
        """End it with an error, if it has not ended."""
        if not self._ended.done():
            self._ended.set_result(error)

    async def wait_for(self, call: Any, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of the work with a call; raises the error by which the request was ended before."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise self._ended.result()
            return working.result()
        finally:
            self.is_over = True
            if not working.done():
                self._abandon(call, working)

    def _abandon(self, call: Any, working: asyncio.Future[Any]) -> None:
        """Give up the rest: by the lease, where the model looks at one."""
        if self.lease is None:
            call.cancel()
        else:
            self.lease.end()
        self.upstream.linger(call, working)


async def _awaited(call: Any) -> bytes:
    return bytes(await call)


async def _pump(call: Any, flight: _Flight, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand on the responses of a stream, each when the client has room for it; the model is told how many were.

    What comes after the request is over is dropped.
    """
    count = 0
    async for response in call:
        if flight.is_over:
            continue
        try:
            await write(_without_internals(response, flight))
        except Exception:  # whatever grpc raises where nobody is there any more
            if not flight.is_over:
                raise
        count += 1
        flight.timed.sent(response)
        flight.has_begun = True
        if flight.lease is not None:
            flight.lease.taken(count)


def _without_internals(response: bytes, flight: _Flight) -> bytes:
    """A response as its client may see it; one that tells an error is how the stream came out."""
    if not response.startswith(_ERROR_TAG):
        return response
    parsed = service_pb2.ModelStreamInferResponse.FromString(response)
    error = answered(parsed.error_message, flight.model)
    flight.outcome, parsed.error_message = error.code, error.to_wire()
    return bytes(parsed.SerializeToString())


def _error_response(error: AttuneError, request_id: str, model: str) -> bytes:
    response = service_pb2.ModelStreamInferResponse(error_message=error.to_wire())
    response.infer_response.id = request_id
    response.infer_response.model_name = model
    return bytes(response.SerializeToString())


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidRequest(f"these {len(message)} bytes are no {kind.DESCRIPTOR.name} of the protocol") from None


def _client_of(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_KEY:
            return str(value)[:100]
    return str(context.peer())


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)
