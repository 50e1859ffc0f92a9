"""The asyncio client: the same calls as `attune_client.client`, awaited.

async with AsyncAttuneClient("127.0.0.1:8001") as client:
    print((await client.analyse("narration.wav")).emotion)
    async with await client.play("narration.wav", duration_s=30) as stream:
        async for chunk in stream:  # [N, C] float32
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import numpy.typing as npt
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from attune_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL, Audio
from attune_client.protocol import models
from attune_client.protocol.errors import RequestTimeout, ServerError
from attune_client.protocol.tensors import ModelSpec
from attune_client.results import MusicPrompt, SpeechEmotion, TherapySession
from attune_client.wire import (
    AudioSource,
    Tensors,
    audio_tensor,
    bytes_tensor,
    infer_inputs,
    read_outputs,
    therapy_inputs,
    translate,
)

__all__ = ["AsyncAttuneClient", "AsyncMusicStream"]


class AsyncAttuneClient:
    """Talks to one server over gRPC; any number of calls may be under way at once.

    `timeout_s` is the longest wait for an answer, or for the next response of a stream, in seconds.
    Every method raises the `AttuneError` that fits; see `attune_client.protocol.errors`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._client = InferenceServerClient(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def analyse(self, audio: AudioSource) -> SpeechEmotion:
        """What a recording (encoded bytes, or a path) says and how it feels.

        Raises an `InvalidAudio` when the recording cannot be used.
        """
        tensors = await self.infer(models.SPEECH_EMOTION, {"audio": audio_tensor(audio)})
        return SpeechEmotion.from_tensors(tensors)

    async def prompt(self, text: str) -> MusicPrompt:
        """The music description nearest to free text, and the prompt made of it."""
        return MusicPrompt.from_tensors(await self.infer(models.MUSIC_PROMPT, {"text": bytes_tensor(text)}))

    async def play(
        self,
        audio: AudioSource,
        *,
        duration_s: float | None = None,
        seed: int | None = None,
        engine: str | None = None,
    ) -> AsyncMusicStream:
        """Music for a recording (encoded bytes, or a path); returns when everything but the music is known.

        Raises an `InvalidAudio` when the recording cannot be used, `InvalidOption` for an option out of range.
        """
        inputs = therapy_inputs(audio, duration_s, seed, engine)
        responses = self.stream(models.MUSIC_THERAPY, inputs)
        first = await anext(responses, None)
        if first is None:
            raise ServerError("the server ended the stream without an answer")
        return AsyncMusicStream(TherapySession.from_tensors(first), responses)

    async def infer(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Call any model of the protocol that answers once."""
        try:
            result = await self._client.infer(model.name, infer_inputs(model, inputs), client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        return read_outputs(result)

    async def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> AsyncIterator[Tensors]:
        """Call any model of the protocol that streams; closing the iterator cancels the request."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model.name, "inputs": infer_inputs(model, inputs)}

        responses = self._client.stream_infer(requests())
        try:
            while True:
                result, error = await asyncio.wait_for(anext(responses), self._timeout_s)
                if error is not None:
                    raise translate(error, self._url)
                yield read_outputs(result)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout(f"nothing came for {self._timeout_s:g} s") from None
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        finally:
            responses.cancel()


class AsyncMusicStream:
    """An async iterator of audio chunks [N, C] float32 in -1..1, with the `session` that came before them.

    Closing it, or leaving its `async with` block, cancels what has not been made yet.
    """

    def __init__(self, session: TherapySession, responses: AsyncIterator[Tensors]) -> None:
        self.session = session
        self._responses = responses

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Audio:
        chunk: Audio = (await anext(self._responses))["music"]
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what has not been made yet."""
        await self._responses.aclose()  # type: ignore[attr-defined]
