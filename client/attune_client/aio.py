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
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any, Self

import numpy.typing as npt
from grpc.aio import AioRpcError
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from attune_client.client import DEFAULT_URL, Audio, Received
from attune_client.protocol import models
from attune_client.protocol.errors import InvalidRequest, ServerError, StreamEndedEarly
from attune_client.protocol.tensors import ModelSpec, Tensors
from attune_client.results import ModelStatus, MusicPrompt, SpeechEmotion, TherapySession
from attune_client.wire import (
    DEFAULT_TIMEOUT_S,
    AudioSource,
    Patience,
    SpecSource,
    check_connection,
    deadline_inputs,
    infer_inputs,
    read_answer,
    read_outputs,
    speech_inputs,
    text_inputs,
    therapy_inputs,
    translate,
)

__all__ = ["AsyncAttuneClient", "AsyncMusicStream"]


class AsyncAttuneClient:
    """A client of one server over gRPC; any number of calls may be concurrent.

    `timeout_s` is the longest wait for an answer, or for the next response of a stream, in seconds. If left out, a
    request with a `deadline_s` is waited for until that deadline, and any other for 300 s each time.
    Every method raises subclasses of `AttuneError` only; see `attune_client.protocol.errors`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float | None = None) -> None:
        check_connection(url, timeout_s)
        self._url = url
        self._timeout_s = None if timeout_s is None else float(timeout_s)
        self._client = InferenceServerClient(url)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        await self._client.close()

    async def is_ready(self) -> bool:
        """Return whether the server responds and all of its models are ready."""
        try:
            return bool(await self._open().is_server_ready(client_timeout=Patience.of(self._timeout_s, {}).left_s()))
        except InferenceServerException:
            return False

    async def models(self) -> list[ModelStatus]:
        """Return the models of the server's repository."""
        try:
            index = await self._open().get_model_repository_index(
                client_timeout=Patience.of(self._timeout_s, {}).left_s()
            )
        except InferenceServerException as error:
            raise translate(error, self._url) from None
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
        sent, patience = infer_inputs(model, inputs), Patience.of(self._timeout_s, inputs)
        try:
            result = await self._open().infer(model.name, sent, client_timeout=patience.left_s())
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        return read_outputs(result)

    async def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> AsyncGenerator[Tensors, None]:
        """Call a streaming model of the protocol; closing the iterator cancels the request.

        Raises `InvalidOption` for inputs that are not the model's.
        """
        sent, patience = infer_inputs(model, inputs), Patience.of(self._timeout_s, inputs)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model.name, "inputs": sent}

        responses = self._open().stream_infer(requests())
        try:
            while True:
                result, error = await asyncio.wait_for(anext(responses), patience.left_s())
                if error is not None:
                    await self._end(responses, patience)
                    raise translate(error, self._url)
                tensors = read_outputs(result)
                if tensors:
                    yield tensors
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise patience.ended() from None
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        except AioRpcError as error:  # tritonclient translates it everywhere except in a stream
            foreign = InferenceServerException(error.details() or "the connection broke", str(error.code()))
            raise translate(foreign, self._url) from None
        finally:
            responses.cancel()

    async def _end(self, responses: AsyncIterator[Any], patience: Patience) -> None:
        """Let the server end a stream after its last response (see `wire.answered`), as far as there is time."""
        with contextlib.suppress(TimeoutError, AioRpcError):
            async with asyncio.timeout(min(patience.left_s(), DEFAULT_TIMEOUT_S)):
                async for _ in responses:
                    pass

    def _open(self) -> InferenceServerClient:
        if self._closed:
            raise InvalidRequest("this client is closed")
        return self._client


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
