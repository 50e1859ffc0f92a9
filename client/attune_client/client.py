"""The blocking client.

with AttuneClient("127.0.0.1:8001") as client:
    print(client.analyse("narration.wav").emotion)
    with client.play("narration.wav", duration_s=30) as stream:
        print(stream.session.prompt.prompt)
        for chunk in stream:  # [N, C] float32
            ...
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferResult
from tritonclient.utils import InferenceServerException

from attune_client.protocol import models
from attune_client.protocol.errors import RequestTimeout, ServerError
from attune_client.protocol.tensors import ModelSpec
from attune_client.results import ModelStatus, MusicPrompt, SpeechEmotion, TherapySession
from attune_client.wire import (
    AudioSource,
    Tensors,
    audio_tensor,
    bytes_tensor,
    infer_inputs,
    is_final,
    read_outputs,
    therapy_inputs,
    translate,
)

__all__ = ["DEFAULT_TIMEOUT_S", "DEFAULT_URL", "AttuneClient", "MusicStream"]

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 300.0

Audio = npt.NDArray[np.float32]


class AttuneClient:
    """Talks to one server over gRPC; safe to use from several threads.

    `timeout_s` is the longest wait for an answer, or for the next response of a stream, in seconds.
    Every method raises the `AttuneError` that fits; see `attune_client.protocol.errors`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._client = InferenceServerClient(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the server answers and all of its models are ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=self._timeout_s))
        except InferenceServerException:
            return False

    def models(self) -> list[ModelStatus]:
        """The models of the server's repository."""
        try:
            index = self._client.get_model_repository_index(client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        return [ModelStatus(m.name, m.version, m.state, m.reason) for m in index.models]

    def analyse(self, audio: AudioSource) -> SpeechEmotion:
        """What a recording (encoded bytes, or a path) says and how it feels.

        Raises an `InvalidAudio` when the recording cannot be used.
        """
        return SpeechEmotion.from_tensors(self.infer(models.SPEECH_EMOTION, {"audio": audio_tensor(audio)}))

    def prompt(self, text: str) -> MusicPrompt:
        """The music description nearest to free text, and the prompt made of it."""
        return MusicPrompt.from_tensors(self.infer(models.MUSIC_PROMPT, {"text": bytes_tensor(text)}))

    def play(
        self,
        audio: AudioSource,
        *,
        duration_s: float | None = None,
        seed: int | None = None,
        engine: str | None = None,
    ) -> MusicStream:
        """Music for a recording (encoded bytes, or a path); returns when everything but the music is known.

        Raises an `InvalidAudio` when the recording cannot be used, `InvalidOption` for an option out of range.
        """
        inputs = therapy_inputs(audio, duration_s, seed, engine)
        return MusicStream(self.stream(models.MUSIC_THERAPY, inputs))

    def infer(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Call any model of the protocol that answers once."""
        try:
            result = self._client.infer(model.name, infer_inputs(model, inputs), client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        return read_outputs(result)

    def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Iterator[Tensors]:
        """Call any model of the protocol that streams; closing the iterator cancels the request."""
        responses: queue.SimpleQueue[InferResult | InferenceServerException] = queue.SimpleQueue()
        # A client carries one stream at a time, so every stream has its own; they share a connection.
        client = InferenceServerClient(self._url)
        finished = False
        try:
            client.start_stream(lambda result, error: responses.put(error or result))
            # A stream that broke before it was used says why through its callback, so through `_next`.
            with contextlib.suppress(InferenceServerException):
                client.async_stream_infer(model.name, infer_inputs(model, inputs), enable_empty_final_response=True)
            while not finished:
                result = self._next(responses)
                finished = is_final(result)
                tensors = read_outputs(result)
                if tensors:
                    yield tensors
        except InferenceServerException as error:
            raise translate(error, self._url) from None
        finally:
            client.stop_stream(cancel_requests=not finished)
            client.close()

    def _next(self, responses: queue.SimpleQueue[InferResult | InferenceServerException]) -> InferResult:
        try:
            response = responses.get(timeout=self._timeout_s)
        except queue.Empty:
            raise RequestTimeout(f"nothing came for {self._timeout_s:g} s") from None
        if isinstance(response, InferenceServerException):
            raise response
        return response


class MusicStream:
    """An iterator of audio chunks [N, C] float32 in -1..1; `session` is known before the first of them.

    Closing it, or leaving its `with` block, cancels what has not been made yet.
    """

    def __init__(self, responses: Iterator[Tensors]) -> None:
        self._responses = responses
        first = next(responses, None)
        if first is None:
            raise ServerError("the server ended the stream without an answer")
        self.session = TherapySession.from_tensors(first)

    def __iter__(self) -> Iterator[Audio]:
        return self

    def __next__(self) -> Audio:
        chunk: Audio = next(self._responses)["music"]
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not been made yet."""
        self._responses.close()  # type: ignore[attr-defined]
