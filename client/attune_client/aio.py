"""The asyncio client: the same calls as `attune_client.client`, awaited.

async with AsyncAttuneClient("127.0.0.1:8001") as client:
    print((await client.analyse("narration.wav")).emotion)
    async with await client.play("narration.wav", duration_s=30) as stream:
        async for chunk in stream:  # [N, C] float32
            ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Self

import grpc
import grpc.aio
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.client import DEFAULT_URL, Audio, Received
from attune_client.connection import CLOSED, OPTIONS, Failure, failure_of, translate
from attune_client.messages import read_response, request_message
from attune_client.protocol import models
from attune_client.protocol.errors import (
    AttuneError,
    InvalidRequest,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    StreamEndedEarly,
    from_wire,
)
from attune_client.protocol.tensors import ModelSpec, Tensors
from attune_client.results import ModelStatus, MusicPrompt, SpeechEmotion, TherapySession
from attune_client.retrying import Retrying, check_retries
from attune_client.wire import (
    LAST_WORDS_S,
    AudioSource,
    Patience,
    SpecSource,
    check_connection,
    deadline_inputs,
    read_answer,
    speech_inputs,
    text_inputs,
    therapy_inputs,
)

__all__ = ["AsyncAttuneClient", "AsyncMusicStream"]


class AsyncAttuneClient:
    """A client of one server over gRPC; any number of calls and streams may be concurrent, in one event loop.

    It may be made before there is a loop, and be used in another one when the first is closed. Every argument is that
    of `AttuneClient`. Every method raises subclasses of `AttuneError` only; see `attune_client.protocol.errors`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float | None = None, retries: int | Retrying = 0) -> None:
        self._url, self._timeout_s = check_connection(url, timeout_s)
        self._retrying = check_retries(retries)
        self._connection: _Connection | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what is still under way ends with `RequestCancelled`."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None and connection.loop is asyncio.get_running_loop():
            await connection.channel.close()

    async def is_ready(self) -> bool:
        """Return whether the server responds and all of its models are ready."""
        stub = self._stub()
        try:
            answer = await self._call(
                stub.ServerReady, service_pb2.ServerReadyRequest(), Patience.of(self._timeout_s, {})
            )
        except AttuneError:
            return False
        return bool(answer.ready)

    async def models(self) -> list[ModelStatus]:
        """Return the models of the server's repository."""
        ask, request = self._stub().RepositoryIndex, service_pb2.RepositoryIndexRequest()
        index = await self._call(ask, request, Patience.of(self._timeout_s, {}))
        return [ModelStatus(m.name, m.version, m.state, m.reason) for m in index.models]

    async def analyse(
        self, audio: AudioSource, *, other_languages: str | None = None, deadline_s: float | None = None
    ) -> SpeechEmotion:
        """Transcribe a recording (encoded bytes, a path, or a file open for reading bytes) and recognise its emotion.

        Arguments and errors are those of `AttuneClient.analyse`.
        """
        inputs = deadline_inputs(deadline_s)
        inputs |= await asyncio.to_thread(speech_inputs, audio, other_languages)
        return read_answer(SpeechEmotion, await self.infer(models.SPEECH_EMOTION, inputs))

    async def prompt(self, text: str, *, deadline_s: float | None = None) -> MusicPrompt:
        """Return the music description nearest to free text, and the prompt made of it."""
        inputs = deadline_inputs(deadline_s) | text_inputs(text)
        return read_answer(MusicPrompt, await self.infer(models.MUSIC_PROMPT, inputs))

    async def play(
        self,
        audio: AudioSource | None = None,
        *,
        text: str | None = None,
        emotion: str | None = None,
        vad: Iterable[float] | None = None,
        spec: SpecSource | None = None,
        duration_s: float | None = None,
        seed: int | None = None,
        engine: str | None = None,
        other_languages: str | None = None,
        deadline_s: float | None = None,
    ) -> AsyncMusicStream:
        """Generate music for a recording or options; returns once the session is known, before the audio.

        Arguments and errors are those of `AttuneClient.play`.
        """
        inputs = await asyncio.to_thread(
            therapy_inputs,
            audio,
            text=text,
            emotion=emotion,
            vad=vad,
            spec=spec,
            duration_s=duration_s,
            seed=seed,
            engine=engine,
            other_languages=other_languages,
            deadline_s=deadline_s,
        )
        responses = self.stream(models.MUSIC_THERAPY, inputs)
        first = await anext(responses, None)
        if first is None:
            raise ServerError("the server ended the stream without an answer")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(responses.aclose)
            stream = AsyncMusicStream(read_answer(TherapySession, first), responses)
            stack.pop_all()
        return stream

    async def play_text(
        self,
        text: str,
        *,
        duration_s: float | None = None,
        seed: int | None = None,
        engine: str | None = None,
        deadline_s: float | None = None,
    ) -> AsyncMusicStream:
        """Generate music for text: `play(text=...)`."""
        return await self.play(text=text, duration_s=duration_s, seed=seed, engine=engine, deadline_s=deadline_s)

    async def infer(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Call a model of the protocol with one response; raises `InvalidOption` for inputs other than the model's."""
        attempts = self._retrying.attempts(inputs)
        while True:
            inputs = attempts.inputs()
            sent, patience = request_message(model, inputs), Patience.of(self._timeout_s, inputs)
            try:
                return read_response(await self._call(self._stub().ModelInfer, sent, patience))
            except ServerUnavailable as error:
                await self._pause(attempts.pause_s(error))

    async def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> AsyncGenerator[Tensors, None]:
        """Call a streaming model of the protocol; closing the iterator cancels the request.

        Raises `InvalidOption` for inputs that are not the model's.
        """
        attempts = self._retrying.attempts(inputs)
        while True:
            inputs = attempts.inputs()
            sent, patience = request_message(model, inputs), Patience.of(self._timeout_s, inputs)
            async with contextlib.aclosing(self._responses(sent, patience)) as responses:
                try:
                    first = await anext(responses, None)
                except ServerUnavailable as error:
                    pause_s = attempts.pause_s(error)
                else:
                    if first is not None:
                        yield first
                        async for tensors in responses:
                            yield tensors
                    return
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait before another attempt; `RequestCancelled` where the client is closed meanwhile."""
        await asyncio.sleep(pause_s)
        if self._closed:
            raise RequestCancelled(CLOSED)

    async def _call(self, method: Any, message: Any, patience: Patience) -> Any:
        """Return the answer to a call that has one."""
        call = method(message, timeout=patience.left_s())
        try:
            return await call
        except grpc.RpcError as error:
            raise self._told(failure_of(error), patience) from None
        except asyncio.CancelledError as error:
            raise await self._cancelled(error, call, patience) from None
        finally:
            call.cancel()

    async def _responses(
        self, message: service_pb2.ModelInferRequest, patience: Patience
    ) -> AsyncGenerator[Tensors, None]:
        # The stream of requests ends with the only one, so that of the responses ends with the last of its own.
        call = self._stub().ModelStreamInfer(iter((message,)), timeout=patience.stream_s())
        try:
            while True:
                async with asyncio.timeout(patience.left_s()):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    return
                if response.error_message:
                    await _let_end(call)
                    raise from_wire(response.error_message)
                tensors = read_response(response.infer_response)
                if tensors:
                    yield tensors
        except TimeoutError:
            raise patience.ended() from None
        except grpc.RpcError as error:
            raise self._told(failure_of(error), patience) from None
        except asyncio.CancelledError as error:
            raise await self._cancelled(error, call, patience) from None
        finally:
            call.cancel()

    async def _cancelled(self, error: asyncio.CancelledError, call: Any, patience: Patience) -> BaseException:
        """What a cancelled wait for a call means: grpc raises the same where the server cancelled the call."""
        task = asyncio.current_task()
        if task is None or task.cancelling() or not call.done():
            return error
        return self._told(Failure(await call.code(), await call.details() or ""), patience)

    def _told(self, failure: Failure, patience: Patience) -> AttuneError:
        if failure.is_timeout:
            return patience.ended()
        if self._closed and failure.code is grpc.StatusCode.CANCELLED:
            return RequestCancelled(CLOSED)
        return translate(failure, self._url)

    def _stub(self) -> Any:
        """The server's methods, over a connection that belongs to the running event loop."""
        if self._closed:
            raise InvalidRequest(CLOSED)
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop.is_closed():
            self._connection = _Connection(loop, self._url)
        if self._connection.loop is not loop:
            raise InvalidRequest("this client is in use in another event loop; make one for each loop")
        return self._connection.stub


class _Connection:
    """A connection, and the event loop that it belongs to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: str) -> None:
        self.loop = loop
        self.channel = grpc.aio.insecure_channel(url, options=OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)


async def _let_end(call: Any) -> None:
    """Let the server end a stream after its last response; see `AttuneClient`."""
    with contextlib.suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(LAST_WORDS_S):
            while await call.read() is not grpc.aio.EOF:
                pass


class AsyncMusicStream:
    """An async iterator of audio chunks [N, C] float32 in -1..1; `session` is known before the first of them.

    Closing it, or leaving its `async with` block, cancels the rest of the generation. Iterating raises
    `StreamEndedEarly` if the music ends before its length.
    """

    def __init__(self, session: TherapySession, responses: AsyncGenerator[Tensors, None]) -> None:
        self.session = session
        self._responses = responses
        self._closed = False
        self._received = Received(session)

    @property
    def received_s(self) -> float:
        """Duration of the music received so far, in seconds."""
        return self._received.seconds

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Audio:
        try:
            tensors = await anext(self._responses)
        except (StopAsyncIteration, StreamEndedEarly):
            if not self._closed:
                self._received.check_end()
            raise
        return self._received.take(tensors)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the rest of the generation."""
        self._closed = True
        await self._responses.aclose()
