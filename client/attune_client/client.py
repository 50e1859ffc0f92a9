"""The blocking client.

with AttuneClient("127.0.0.1:8001") as client:
    print(client.analyse("narration.wav").emotion)
    with client.play("narration.wav", duration_s=30) as stream:
        print(stream.session.prompt.prompt)
        for chunk in stream:  # [N, C] float32
            ...
    with client.play_text("rain on the window, and nowhere to be") as stream:
        ...
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.alarm import Alarm
from attune_client.connection import CLOSED, OPTIONS, failure_of, translate
from attune_client.messages import read_response, request_message
from attune_client.protocol import models
from attune_client.protocol.checks import check_complete
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
    DEFAULT_TIMEOUT_S,
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

__all__ = ["DEFAULT_TIMEOUT_S", "DEFAULT_URL", "AttuneClient", "BaseClient", "MusicStream"]

DEFAULT_URL = "127.0.0.1:8001"

Audio = npt.NDArray[np.float32]


class BaseClient(ABC):
    """The requests of every client, wherever the models run.

    Every method raises subclasses of `AttuneError` only; see `attune_client.protocol.errors`.
    """

    def analyse(
        self, audio: AudioSource, *, other_languages: str | None = None, deadline_s: float | None = None
    ) -> SpeechEmotion:
        """Transcribe a recording (encoded bytes, a path, or a file open for reading bytes) and recognise its emotion.

        Speech that is not English is refused (`UnsupportedLanguage`), unless `other_languages` is "voice": then the
        voice is used, without words. Raises an `InvalidAudio` when the recording cannot be used, and `RequestTimeout`
        when the server does not finish within `deadline_s` seconds.
        """
        inputs = deadline_inputs(deadline_s) | speech_inputs(audio, other_languages)
        return read_answer(SpeechEmotion, self.infer(models.SPEECH_EMOTION, inputs))

    def prompt(self, text: str, *, deadline_s: float | None = None) -> MusicPrompt:
        """Return the music description nearest to free text, and the prompt made of it."""
        inputs = deadline_inputs(deadline_s) | text_inputs(text)
        return read_answer(MusicPrompt, self.infer(models.MUSIC_PROMPT, inputs))

    def play(
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
    ) -> MusicStream:
        """Generate music for a recording or options; returns once the session is known, before the audio.

        Args:
            audio: a recording: encoded bytes, a path, or a file open for reading bytes.
            text: query for retrieval; together with `spec`, the prompt for an engine that takes one.
            emotion: one of the 40 emotions, in any case; `vad` may shade it, and never turns it into another.
            vad: valence, arousal and dominance, each 1..5; without `emotion`, the nearest emotion is used.
            spec: musical specification, without retrieval: a `MusicSpec`, or its fields as mapping or JSON.
            duration_s: seconds of music, 1..600; 30 if left out.
            seed: equal seeds give equal music; drawn if left out, and part of the session.
            engine: the music engine by name; the server's own if left out.
            other_languages: "refuse" (if left out) or "voice", for a recording that is not in English.
            deadline_s: how long all of it may take, the music included, in seconds from when the server takes the
                request; above 0 and at most 3,600. After it the stream ends with `RequestTimeout`.

        Raises:
            InvalidAudio: the recording cannot be used.
            InvalidOption: no source, several incompatible ones, or an option out of range.
            RequestTimeout: the deadline passed.
        """
        inputs = therapy_inputs(
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
        return MusicStream(self.stream(models.MUSIC_THERAPY, inputs))

    def play_text(
        self,
        text: str,
        *,
        duration_s: float | None = None,
        seed: int | None = None,
        engine: str | None = None,
        deadline_s: float | None = None,
    ) -> MusicStream:
        """Generate music for text: `play(text=...)`."""
        return self.play(text=text, duration_s=duration_s, seed=seed, engine=engine, deadline_s=deadline_s)

    @abstractmethod
    def infer(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Call any model of the protocol that answers once; `InvalidOption` for inputs that are not the model's."""

    @abstractmethod
    def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Generator[Tensors, None, None]:
        """Call any model of the protocol that streams; closing the iterator cancels the request.

        `InvalidOption` for inputs that are not the model's.
        """


class AttuneClient(BaseClient):
    """Talks to one server over gRPC; safe to use from several threads, for any number of requests and streams at once.

    `url` is `host:port`, `[IPv6]:port`, or `unix:/path` of a socket.

    `timeout_s` is the longest wait for an answer, or for the next response of a stream, in seconds. If left out, a
    request with a `deadline_s` is waited for until that deadline, and any other for 300 s each time.

    `retries` is how often a request is sent again that the server could not take (`ServerBusy`, `ServerUnavailable`),
    as long as nothing of the answer has come: when the server says, or after half a second, and twice as long each
    time, up to eight seconds. The deadline counts from the first time. A request during which a model died is among
    them: it is sent again as well.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float | None = None, retries: int | Retrying = 0) -> None:
        self._url, self._timeout_s = check_connection(url, timeout_s)
        self._retrying = check_retries(retries)
        self._channel = grpc.insecure_channel(self._url, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what is still under way ends with `RequestCancelled`."""
        self._closed.set()
        self._channel.close()

    def is_ready(self) -> bool:
        """Return whether the server responds and all of its models are ready."""
        self._check_open()
        try:
            answer = self._call("ServerReady", service_pb2.ServerReadyRequest(), Patience.of(self._timeout_s, {}))
        except AttuneError:
            return False
        return bool(answer.ready)

    def models(self) -> list[ModelStatus]:
        """Return the models of the server's repository."""
        index = self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), Patience.of(self._timeout_s, {}))
        return [ModelStatus(m.name, m.version, m.state, m.reason) for m in index.models]

    def infer(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Tensors:
        """Call any model of the protocol that answers once; `InvalidOption` for inputs that are not the model's."""
        attempts = self._retrying.attempts(inputs)
        while True:
            inputs = attempts.inputs()
            sent, patience = request_message(model, inputs), Patience.of(self._timeout_s, inputs)
            try:
                return read_response(self._call("ModelInfer", sent, patience))
            except ServerUnavailable as error:
                self._pause(attempts.pause_s(error))

    def stream(self, model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> Generator[Tensors, None, None]:
        """Call any model of the protocol that streams; closing the iterator cancels the request.

        `InvalidOption` for inputs that are not the model's.
        """
        attempts = self._retrying.attempts(inputs)
        while True:
            inputs = attempts.inputs()
            sent, patience = request_message(model, inputs), Patience.of(self._timeout_s, inputs)
            with contextlib.closing(self._responses(sent, patience)) as responses:
                try:
                    first = next(responses, None)
                except ServerUnavailable as error:
                    pause_s = attempts.pause_s(error)
                else:
                    if first is not None:
                        yield first
                        yield from responses
                    return
            self._pause(pause_s)

    def _call(self, method: str, message: Any, patience: Patience) -> Any:
        """Return the answer to a call that has one."""
        call = self._begin(lambda: getattr(self._stub, method).future(message, timeout=patience.left_s()))
        try:
            return call.result()
        except grpc.RpcError as error:
            raise self._told(error, patience) from None
        finally:
            call.cancel()  # where a signal ended the wait

    def _responses(self, message: service_pb2.ModelInferRequest, patience: Patience) -> Generator[Tensors, None, None]:
        # The stream of requests ends with the only one, so that of the responses ends with the last of its own.
        call = self._begin(lambda: self._stub.ModelStreamInfer(iter((message,)), timeout=patience.stream_s()))
        alarm = Alarm(call.cancel)
        try:
            while True:
                with alarm.within(patience.left_s()):
                    response = next(call, None)
                if response is None:
                    return
                if response.error_message:
                    self._let_end(call, alarm)
                    raise from_wire(response.error_message)
                tensors = read_response(response.infer_response)
                if tensors:
                    yield tensors
        except grpc.RpcError as error:
            raise patience.ended() if alarm.rang else self._told(error, patience) from None
        finally:
            alarm.stop()
            call.cancel()

    def _let_end(self, call: Any, alarm: Alarm) -> None:
        """Let the server end a stream after its last response: Triton 2.51 now and then never releases a request that
        is cancelled at its end, and waits for it at shutdown.
        """
        with contextlib.suppress(grpc.RpcError), alarm.within(LAST_WORDS_S):
            for _ in call:
                pass

    def _pause(self, pause_s: float) -> None:
        """Wait before another attempt; `RequestCancelled` where another thread closes the client meanwhile."""
        if self._closed.wait(pause_s):
            raise RequestCancelled(CLOSED)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise InvalidRequest(CLOSED)

    def _begin(self, begin: Callable[[], Any]) -> Any:
        self._check_open()
        try:
            return begin()
        except ValueError as error:  # closed by another thread
            raise InvalidRequest(CLOSED) from error

    def _told(self, error: grpc.RpcError, patience: Patience) -> AttuneError:
        failure = failure_of(error)
        if failure.is_timeout:
            return patience.ended()
        if self._closed.is_set() and failure.code is grpc.StatusCode.CANCELLED:
            return RequestCancelled(CLOSED)
        return translate(failure, self._url)


class Received:
    """Counter of the music received in a session; used by the streams of both clients."""

    def __init__(self, session: TherapySession) -> None:
        self._session = session
        self._frames = 0

    @property
    def seconds(self) -> float:
        """Duration of the music received, in seconds."""
        return self._frames / self._session.sample_rate

    def take(self, tensors: Tensors) -> Audio:
        """Return the chunk [N, C] of a response, and count it."""
        chunk = tensors.get("music")
        if chunk is None or chunk.ndim != 2:
            raise ServerError("the server sent something else than music")
        self._frames += len(chunk)
        return chunk

    def check_end(self) -> None:
        """Raise `StreamEndedEarly` if the music is not complete."""
        check_complete(self._frames, self._session.sample_rate, self._session.duration_s)


class MusicStream:
    """An iterator of audio chunks [N, C] float32 in -1..1; `session` is known before the first of them.

    Closing it, or leaving its `with` block, cancels the rest of the generation. Iterating raises `StreamEndedEarly`
    if the music ends before its length.
    """

    def __init__(self, responses: Generator[Tensors, None, None]) -> None:
        self._responses = responses
        self._closed = False
        first = next(responses, None)
        if first is None:
            raise ServerError("the server ended the stream without an answer")
        with contextlib.ExitStack() as stack:
            stack.callback(responses.close)
            self.session = read_answer(TherapySession, first)
            stack.pop_all()
        self._received = Received(self.session)

    @property
    def received_s(self) -> float:
        """Duration of the music received so far, in seconds."""
        return self._received.seconds

    def __iter__(self) -> Iterator[Audio]:
        return self

    def __next__(self) -> Audio:
        try:
            tensors = next(self._responses)
        except (StopIteration, StreamEndedEarly):
            if not self._closed:
                self._received.check_end()
            raise
        return self._received.take(tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the rest of the generation."""
        self._closed = True
        self._responses.close()
