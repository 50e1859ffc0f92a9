"""What adapters share, with a stand-in for Triton's pb_utils: `pytest tests/unit/test_serving_adapter.py`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    SilentAudio,
    from_wire,
)
from attune_client.protocol.models import MUSIC_GENERATOR, MUSIC_PROMPT, SPEECH_EMOTION, SPEECH_TO_TEXT
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter
from attune_ensemble.serving.lease import Lease, is_held
from attune_ensemble.serving.own_server import OWN_URL
from attune_ensemble.serving.places import Places
from attune_ensemble.serving.reply import Reply
from tests.fake_triton import FakeTriton

WAIT_S = 5.0


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class FakeTritonError:
    INVALID_ARG, INTERNAL, CANCELLED, UNAVAILABLE = "invalid", "internal", "cancelled", "unavailable"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor] | None = None, error: FakeTritonError | None = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[FakeTensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> FakeTritonError:
        assert self._error is not None
        return self._error

    def arrays(self) -> dict[str, Any]:
        return {tensor.name(): tensor.as_numpy().tolist() for tensor in self._tensors}


class FakeSender:
    def __init__(self) -> None:
        self.sent: list[FakeResponse] = []
        self.cancelled = False
        self.finished = threading.Event()

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self.sent.append(response)
        if flags:
            self.finished.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class FakeRequest:
    def __init__(self, request_id: str = "", **inputs: np.ndarray) -> None:
        self.id = request_id
        self._inputs = [FakeTensor(name, array) for name, array in inputs.items()]
        self.sender = FakeSender()

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> FakeSender:
        return self.sender


class FakeLogger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log_error(self, line: str) -> None:
        self.lines.append(line)

    def log_info(self, line: str) -> None:
        self.lines.append(line)


class FakePb:
    """`called` answers what the adapter calls through the stub: the model's name and its inputs, to a response."""

    Tensor, InferenceResponse, TritonError = FakeTensor, FakeResponse, FakeTritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL, TRITONSERVER_MEMORY_CPU = 1, 0

    def __init__(self, called: Callable[[str, dict[str, np.ndarray]], Any] | None = None) -> None:
        self.Logger = FakeLogger()
        self.request_ids: list[str] = []
        self._called = called

    def PreferredMemory(self, kind: int, device: int) -> tuple[int, int]:  # noqa: N802
        return kind, device

    def InferenceRequest(  # noqa: N802
        self, *, model_name: str, request_id: str, inputs: list[FakeTensor], **_: Any
    ) -> Any:
        answer = self._called
        self.request_ids.append(request_id)
        arrays = {tensor.name(): tensor.as_numpy() for tensor in inputs}

        class Request:
            def exec(self) -> Any:  # never decoupled, which deadlocks
                assert answer is not None
                return answer(model_name, arrays)

        return Request()


Streams = Callable[[str, dict[str, np.ndarray]], Iterator[dict[str, np.ndarray] | str]]


@pytest.fixture
def streams(monkeypatch) -> Iterator[Callable[[Streams], FakeTriton]]:
    """Let a function answer what the adapters ask at the server's own port."""
    servers: list[FakeTriton] = []

    def serve(called: Streams) -> FakeTriton:
        servers.append(FakeTriton(called))
        monkeypatch.setenv(OWN_URL, servers[-1].url)
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


ARGS = {
    "model_config": json.dumps({"parameters": {"engine": {"string_value": "composer"}}}),
    "model_instance_kind": "CPU",
    "model_instance_device_id": "0",
    "model_repository": "/models/music_prompt",
    "model_version": "1",
}


def make(pb: FakePb, spec: Any = MUSIC_PROMPT, **settings: int) -> Adapter:
    parameters = {name: {"string_value": str(value)} for name, value in settings.items()}
    return Adapter(spec, ARGS | {"model_config": json.dumps({"parameters": parameters})}, pb)


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=np.object_)


def test_settings_device_and_folder_come_from_the_server():
    adapter = Adapter(MUSIC_PROMPT, ARGS, FakePb())
    assert adapter.settings == {"engine": "composer"}
    assert adapter.device == "cpu"
    assert str(adapter.folder) == "/models/music_prompt/1"
    on_gpu = ARGS | {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    assert Adapter(MUSIC_PROMPT, on_gpu, FakePb()).device == "cuda:1"


def test_outputs_take_the_declared_type():
    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"prompt": "slow " + inputs["text"][0].decode(), "similarity": 0.5}

    (response,) = make(FakePb()).answer([FakeRequest(text=text("piano"))], describe)
    prompt, similarity = (tensor.as_numpy() for tensor in response.output_tensors())
    assert prompt.tolist() == ["slow piano"]
    assert prompt.dtype == np.object_
    assert similarity.tolist() == [0.5]
    assert similarity.dtype == np.float32


def test_one_failing_request_fails_alone():
    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        if "text" not in inputs:
            raise InvalidOption("give an emotion or a text")
        return {"prompt": inputs["text"]}

    good, bad = make(FakePb()).answer([FakeRequest(text=text("a")), FakeRequest()], describe)
    assert good.arrays() == {"prompt": [b"a"]}
    assert bad.error().message() == "invalid_option: give an emotion or a text"
    assert bad.error().code() == FakeTritonError.INVALID_ARG


def test_a_programming_error_goes_to_the_log_and_not_to_the_client():
    pb = FakePb()
    (response,) = make(pb).answer([FakeRequest()], lambda inputs: {"prompt": inputs["secret"]})
    assert response.error().message() == "server_error: music_prompt failed; see the server's log"
    assert response.error().code() == FakeTritonError.INTERNAL
    assert "Traceback" in pb.Logger.lines[0]
    assert "KeyError: 'secret'" in pb.Logger.lines[0]


def test_requests_overlap_when_answered_concurrently():
    meeting = threading.Barrier(2, timeout=WAIT_S)  # passes only if both requests are at work at once

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        meeting.wait()
        return {"prompt": inputs["text"]}

    requests = [FakeRequest(text=text(word)) for word in ("a", "b")]
    make(FakePb()).answer_concurrently(requests, describe)
    for request, word in zip(requests, (b"a", b"b"), strict=True):
        assert request.sender.finished.wait(WAIT_S)
        assert [response.arrays() for response in request.sender.sent] == [{"prompt": [word]}]


class Counting:
    """A stream of chunks that says how many were made, and whether it was closed."""

    def __init__(self, before_each: Callable[[int], None] = lambda index: None) -> None:
        self.made = 0
        self.closed = threading.Event()
        self._before_each = before_each

    def __call__(self, inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        assert LEASE not in inputs
        try:
            for index in range(100):
                self._before_each(index)
                self.made += 1
                yield {"music": np.full((2, 2), index)}
        finally:
            self.closed.set()


def test_a_stream_sends_each_item_and_ends():
    request = FakeRequest()
    make(FakePb(), MUSIC_GENERATOR).stream([request], lambda inputs, context: ({"engine": name} for name in ("a", "b")))
    assert request.sender.finished.wait(WAIT_S)
    assert [response.arrays() for response in request.sender.sent] == [{"engine": ["a"]}, {"engine": ["b"]}]


def test_a_cancelled_stream_makes_at_most_one_more_chunk():
    request = FakeRequest()

    def cancel_at_third(index: int) -> None:
        request.sender.cancelled = index == 3

    chunks = Counting(cancel_at_third)
    make(FakePb(), MUSIC_GENERATOR).stream([request], chunks)
    assert request.sender.finished.wait(WAIT_S)
    assert chunks.closed.is_set()
    *sent, last = request.sender.sent
    assert (len(sent), chunks.made) == (3, 4)
    assert last.error().code() == FakeTritonError.CANCELLED  # what was cut short does not look whole


def test_a_stream_stops_when_its_lease_ends():
    lease = Lease()

    def give_up_at_third(index: int) -> None:
        if index == 3:
            lease.end()

    chunks = Counting(give_up_at_third)
    request = FakeRequest(lease=text(lease.token))
    make(FakePb(), MUSIC_GENERATOR).stream([request], chunks)
    assert request.sender.finished.wait(WAIT_S)
    *sent, last = request.sender.sent
    assert (len(sent), chunks.made) == (3, 4)
    assert isinstance(from_wire(last.error().message()), RequestCancelled)


def test_a_stream_that_fails_sends_what_it_had_and_the_error():
    def fail_at_second(index: int) -> None:
        if index == 2:
            raise InvalidOption("no such engine")

    request = FakeRequest()
    make(FakePb(), MUSIC_GENERATOR).stream([request], Counting(fail_at_second))
    assert request.sender.finished.wait(WAIT_S)
    assert [response.has_error() for response in request.sender.sent] == [False, False, True]


def test_a_call_returns_tensors_by_name():
    def called(name: str, inputs: dict[str, np.ndarray]) -> FakeResponse:
        assert name == SPEECH_TO_TEXT.name
        return FakeResponse([FakeTensor("transcript", inputs["audio"])])

    answer = make(FakePb(called)).call("speech_to_text", {"audio": text("hello")}, context=UNLIMITED)
    assert answer["transcript"].tolist() == [b"hello"]


def test_a_call_raises_what_the_model_answered():
    message = "Failed to process the request(s), message: silent_audio: nothing to hear"
    pb = FakePb(lambda name, inputs: FakeResponse(error=FakeTritonError(message)))
    with pytest.raises(SilentAudio, match=r"^nothing to hear$"):
        make(pb).call("speech_to_text", {"audio": text("")}, context=UNLIMITED)
    pb = FakePb(lambda name, inputs: FakeResponse(error=FakeTritonError("Stub process is not healthy.")))
    with pytest.raises(ServerError, match="not healthy"):
        make(pb).call("speech_to_text", {"audio": text("")}, context=UNLIMITED)
    assert "speech_to_text answered" in pb.Logger.lines[0]


def test_a_call_has_a_deadline():
    hold = threading.Event()
    pb = FakePb(lambda name, inputs: hold.wait(WAIT_S))
    with pytest.raises(RequestTimeout, match=r"speech_to_text gave no answer within 0\.05 s"):
        make(pb).call("speech_to_text", {"audio": text("")}, context=UNLIMITED, timeout_s=0.05)
    hold.set()


def test_closing_a_called_stream_ends_the_lease_and_drains_it(streams):
    """It is not cancelled: Triton may then never release it."""
    tokens: list[str] = []
    drained = threading.Event()

    def called(name: str, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        tokens.append(inputs[LEASE][0].decode())
        index = 0
        while is_held(tokens[0]):
            yield {"music": np.full((1, 2), index, np.float32)}
            index += 1
        yield {}
        drained.set()

    triton = streams(called)
    stream = make(FakePb()).call_stream("music_generator", {"prompt": text("slow")}, context=UNLIMITED)
    assert next(stream)["music"].tolist() == [[0, 0]]
    assert is_held(tokens[0])
    stream.close()
    assert not is_held(tokens[0])
    assert drained.wait(WAIT_S)
    wait_until(lambda: triton.ended == [False])


def test_a_lease_ends_with_its_holder():
    code = (
        "import sys; from attune_ensemble.serving.lease import Lease; l = Lease(); print(l.token, flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    token = holder.stdout.readline().strip()
    assert is_held(token)
    holder.kill()
    holder.wait()
    assert not is_held(token)


def test_a_lease_lies_in_no_folder_and_its_number_may_be_taken_again():
    with Lease() as lease:
        assert is_held(lease.token)
        process, file, secret = lease.token.split("-")
        assert int(process) == os.getpid()
        assert not is_held(f"{process}-{file}-{'0' * len(secret)}")
    assert not is_held(lease.token)
    with Lease() as other:
        assert other.token.split("-")[1] == file
        assert not is_held(lease.token)
        assert is_held(other.token)


@pytest.mark.parametrize("token", ["", "../../etc/passwd", "1-2-3", "0-1-" + "a" * 32, "1-1-" + "A" * 32])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(InvalidOption):
        is_held(token)
    request = FakeRequest(lease=text(token))
    make(FakePb(), MUSIC_GENERATOR).stream([request], Counting())
    assert isinstance(outcome(request), InvalidOption)


# --- nothing waits for ever, and nothing goes on for nobody ---

SOON_S = 1.0


def outcome(request: FakeRequest) -> Any:
    """The error that ended a request, or its last response."""
    assert request.sender.finished.wait(WAIT_S)
    last = request.sender.sent[-1]
    return from_wire(last.error().message()) if last.has_error() else last


class Dead:
    """A model that was killed: it answers nothing, or nothing after its first `responses`."""

    def __init__(self, responses: int = 0) -> None:
        self._responses = responses
        self.asked = threading.Event()
        self.lease = ""
        self.revived = threading.Event()

    def __call__(self, name: str, inputs: dict[str, np.ndarray]) -> Any:
        self.lease = inputs[LEASE][0].decode() if LEASE in inputs else ""
        self.asked.set()
        return self._stream() if name == MUSIC_GENERATOR.name else self._block()

    def _stream(self) -> Iterator[dict[str, np.ndarray]]:
        for index in range(self._responses):
            yield {"music": np.full((1, 2), index, np.float32)}
        self._block()

    def _block(self) -> FakeResponse:
        self.revived.wait(10 * WAIT_S)
        return FakeResponse()


@pytest.fixture
def dead(streams) -> Iterator[Dead]:
    model = Dead()
    streams(model)
    yield model
    model.revived.set()


@pytest.mark.parametrize("responses", [0, 2])
def test_every_response_of_a_stream_has_a_deadline(responses, dead):
    dead._responses = responses
    stream = make(FakePb()).call_stream(
        "music_generator", {"prompt": text("slow")}, context=UNLIMITED, timeout_s=SOON_S
    )
    for _ in range(responses):
        next(stream)
    started_s = time.monotonic()
    with pytest.raises(RequestTimeout, match=r"music_generator gave no answer within 1 s"):
        next(stream)
    assert time.monotonic() - started_s < 2 * SOON_S
    assert dead.lease
    assert not is_held(dead.lease)


def cancel_while(adapter: Adapter, dead: Dead, start: Callable[[FakeRequest], None]) -> Any:
    """What a request ends with that is cancelled while `start` waits for a model that says nothing, and how soon."""
    request = FakeRequest(text=text("a"))
    start(request)
    assert dead.asked.wait(WAIT_S)
    assert not request.sender.finished.wait(0.1)
    request.sender.cancelled = True
    assert request.sender.finished.wait(SOON_S)
    assert not is_held(dead.lease)
    return outcome(request)


@pytest.mark.parametrize("responses", [0, 2])
def test_a_stream_that_is_cancelled_while_it_waits_for_a_model_ends_within_a_second(responses, dead):
    dead._responses = responses
    adapter = make(FakePb(dead), MUSIC_GENERATOR)

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        yield from adapter.call_stream("music_generator", {"prompt": inputs["text"]}, context=context)

    ended = cancel_while(adapter, dead, lambda request: adapter.stream([request], play))
    assert isinstance(ended, RequestCancelled)


def test_an_answer_that_is_cancelled_while_it_waits_for_a_model_calls_no_other(dead):
    adapter = make(FakePb(dead), MUSIC_PROMPT)
    went_on: list[str] = []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        with contextlib.suppress(RequestTimeout):
            adapter.call("speech_to_text", {"audio": inputs["text"]}, context=context)
            went_on.append("after the first call")
        with pytest.raises(RequestCancelled):
            adapter.call("text_tokenizer", {"transcript": inputs["text"]}, context=context)
        return {}

    ended = cancel_while(adapter, dead, lambda request: adapter.answer_concurrently([request], describe))
    assert isinstance(ended, RequestCancelled)
    assert not went_on


def test_whoever_does_not_want_it_any_more_wins_no_place():
    adapter = make(FakePb(), max_concurrent=1, max_waiting=1)
    go_on, begun = threading.Event(), []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        begun.append(inputs["text"][0])
        assert go_on.wait(WAIT_S)
        return {"prompt": inputs["text"]}

    at_work, waiting, third = (FakeRequest(text=text(word)) for word in ("a", "b", "c"))
    adapter.answer_concurrently([at_work, waiting], describe)
    waiting.sender.cancelled = True
    assert waiting.sender.finished.wait(SOON_S)  # though the first is still at work
    assert isinstance(outcome(waiting), RequestCancelled)
    adapter.answer_concurrently([third], describe)  # its place is free
    go_on.set()
    assert outcome(third).arrays() == {"prompt": [b"c"]}
    assert begun == [b"a", b"c"]


def test_a_caller_that_vanishes_frees_its_place_in_the_queue():
    adapter = make(FakePb(), SPEECH_TO_TEXT, max_concurrent=1)
    go_on = threading.Event()

    def transcribe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        assert LEASE not in inputs
        assert go_on.wait(WAIT_S)
        return {"start_s": [0.0]}

    lease = Lease()
    at_work, waiting = FakeRequest(audio=text("a")), FakeRequest(audio=text("b"), lease=text(lease.token))
    adapter.answer_concurrently([at_work, waiting], transcribe)
    assert not waiting.sender.finished.wait(0.3)
    lease.end()
    assert waiting.sender.finished.wait(SOON_S)
    assert isinstance(outcome(waiting), RequestCancelled)
    go_on.set()
    outcome(at_work)


def test_long_work_sees_between_its_steps_that_nobody_waits():
    adapter = make(FakePb())
    request = FakeRequest()

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        context.check()
        request.sender.cancelled = True
        for _ in range(100):
            time.sleep(0.05)
            context.check()
        return {}

    adapter.answer_concurrently([request], describe)
    assert request.sender.finished.wait(SOON_S)
    assert isinstance(outcome(request), RequestCancelled)


def test_triton_is_not_asked_about_a_request_that_is_complete():
    request = FakeRequest()
    asked_after: list[bool] = []
    request.sender.is_cancelled = lambda: asked_after.append(request.sender.finished.is_set()) or False  # type: ignore[method-assign,func-returns-value]
    make(FakePb(), MUSIC_GENERATOR).stream([request], lambda inputs, context: iter([{"engine": "a"}]))
    outcome(request)
    time.sleep(0.5)
    assert asked_after
    assert not any(asked_after)


class Passing(FakeRequest):
    """A request that keeps no hold of its sender, as Triton's does not once `execute` has returned."""

    def get_response_sender(self) -> FakeSender:
        sender = FakeSender()
        self.finished, self.alive = sender.finished, weakref.ref(sender)
        return sender


@pytest.mark.parametrize("words", ["good", "silent", "nothing"])
def test_a_request_that_is_complete_is_let_go(words):
    """Triton counts it as in flight, and waits for it when it stops, as long as anything holds its sender."""

    def called(name: str, inputs: dict[str, np.ndarray]) -> FakeResponse:
        if words == "silent":
            return FakeResponse(error=FakeTritonError("silent_audio: nothing to hear"))
        return FakeResponse([FakeTensor("transcript", inputs["audio"])])

    adapter = make(FakePb(called), MUSIC_GENERATOR)

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        if words != "nothing":
            adapter.call("speech_to_text", {"audio": text(words)}, context=context)
        yield {"engine": words}

    request = Passing()
    gc.disable()
    try:
        adapter.stream([request], play)
        assert request.finished.wait(WAIT_S)
        deadline_s = time.monotonic() + SOON_S
        while request.alive() is not None:
            assert time.monotonic() < deadline_s, gc.get_referrers(request.alive())
            time.sleep(0.02)
    finally:
        gc.enable()


# --- deadlines ---

NO_TIME_S, LITTLE_S, ENOUGH_S = 1e-9, 0.2, 60.0


def seconds(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def test_a_deadline_that_is_over_at_once_is_refused_before_anything_is_done():
    begun: list[Any] = []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        begun.append(inputs)
        return {}

    request = FakeRequest(text=text("a"), deadline_s=seconds(NO_TIME_S))
    make(FakePb()).answer_concurrently([request], describe)
    ended = outcome(request)
    assert isinstance(ended, RequestTimeout)
    assert str(ended) == "the deadline passed before music_prompt was done"
    assert request.sender.sent[-1].error().code() == FakeTritonError.UNAVAILABLE
    assert not begun


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, np.nan, np.inf, 3_601.0])
def test_a_deadline_out_of_range_is_refused(deadline_s):
    request = FakeRequest(text=text("a"), deadline_s=seconds(deadline_s))
    make(FakePb()).answer_concurrently([request], lambda inputs, context: {"prompt": inputs["text"]})
    ended = outcome(request)
    assert isinstance(ended, InvalidOption)
    assert str(ended).startswith("deadline_s must lie above 0 and at most at 3600, not ")


def test_a_deadline_is_for_the_adapter_and_what_is_left_of_it_for_the_service():
    left_s: list[float | None] = []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        assert set(inputs) == {"text"}
        left_s.append(context.left_s())
        return {"prompt": inputs["text"]}

    for deadline in ({"deadline_s": seconds(ENOUGH_S)}, {}):
        request = FakeRequest(text=text("a"), **deadline)
        make(FakePb()).answer_concurrently([request], describe)
        outcome(request)
    assert left_s[1] is None
    assert left_s[0] is not None
    assert ENOUGH_S - WAIT_S < left_s[0] <= ENOUGH_S


def test_a_called_model_gets_what_is_left_and_an_id_where_it_takes_them():
    given: dict[str, dict[str, np.ndarray]] = {}

    def called(name: str, inputs: dict[str, np.ndarray]) -> FakeResponse:
        given[name] = inputs
        return FakeResponse([])

    pb = FakePb(called)
    adapter = make(pb)
    context = CallContext(deadline=time.monotonic() + ENOUGH_S, request_id="narration")
    adapter.call("speech_to_text", {"audio": text("a")}, context=context)
    adapter.call("text_tokenizer", {"transcript": text("a")}, context=context)
    (left_s,) = given["speech_to_text"]["deadline_s"]
    assert ENOUGH_S - WAIT_S < left_s <= ENOUGH_S
    assert set(given["text_tokenizer"]) == {"transcript"}
    assert pb.request_ids == ["narration/speech_to_text", "narration/text_tokenizer"]


def test_no_model_is_called_for_a_request_that_is_over(streams):
    called: list[str] = []
    streams(lambda name, inputs: called.append(name) or iter([]))  # type: ignore[func-returns-value]
    adapter = make(FakePb(lambda name, inputs: called.append(name)))
    with pytest.raises(RequestTimeout, match="before text_tokenizer was done"):
        adapter.call("text_tokenizer", {"transcript": text("a")}, context=CallContext.within(0.0))
    with pytest.raises(RequestTimeout, match="before music_generator was done"):
        next(adapter.call_stream("music_generator", {"prompt": text("a")}, context=CallContext.within(0.0)))
    assert not called


@pytest.mark.parametrize("name", ["speech_to_text", "emotion_recognition"])
def test_a_model_that_blocks_holds_its_caller_until_the_deadline(name, dead):
    adapter = make(FakePb(dead))

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        return adapter.call(name, {}, context=context)

    request = FakeRequest(deadline_s=seconds(LITTLE_S))
    adapter.answer_concurrently([request], describe)
    ended = outcome(request)
    assert isinstance(ended, RequestTimeout)
    assert str(ended) in (f"the deadline passed before {stage} was done" for stage in (name, "music_prompt"))
    assert not is_held(dead.lease or f"1-1-{'0' * 32}")


@pytest.mark.parametrize("responses", [0, 2])
def test_a_stream_that_waits_for_a_model_ends_at_the_deadline(responses, dead):
    dead._responses = responses
    adapter = make(FakePb(dead), MUSIC_GENERATOR)

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        yield from adapter.call_stream("music_generator", {"prompt": text("a")}, context=context)

    request = FakeRequest(deadline_s=seconds(SOON_S))
    adapter.stream([request], play)
    assert isinstance(outcome(request), RequestTimeout)
    assert [response.has_error() for response in request.sender.sent] == [False] * responses + [True]
    assert not is_held(dead.lease)


@pytest.mark.parametrize("name", ["speech_to_text", "music_generator"])
def test_a_call_without_a_timeout_waits_until_the_deadline_and_without_one_for_so_long(monkeypatch, name, dead):
    monkeypatch.setattr("attune_ensemble.serving.adapter._CALL_TIMEOUT_S", 0.05)
    adapter = make(FakePb(dead))

    def ask(context: CallContext, **options: float) -> None:
        if name == "music_generator":
            next(adapter.call_stream(name, {"prompt": text("slow")}, context=context, **options))
        else:
            adapter.call(name, {"audio": text("")}, context=context, **options)

    with pytest.raises(RequestTimeout, match=f"{name} gave no answer within 0.05 s"):
        ask(UNLIMITED)
    context = CallContext.within(10 * 0.05)
    with pytest.raises(RequestTimeout, match=f"the deadline passed before {name} was done"):
        ask(context)
    assert context.left_s() == 0
    with pytest.raises(RequestTimeout, match=f"{name} gave no answer within 0.02 s"):
        ask(CallContext.within(ENOUGH_S), timeout_s=0.02)


def test_a_stream_makes_no_chunk_after_the_deadline():
    def wait_in_the_middle(index: int) -> None:
        if index == 3:
            time.sleep(2 * LITTLE_S)

    chunks = Counting(wait_in_the_middle)
    with Lease() as lease:
        alone = FakeRequest(deadline_s=seconds(LITTLE_S))
        make(FakePb(), MUSIC_GENERATOR).stream([alone], chunks)
        assert isinstance(outcome(alone), RequestTimeout)
        assert chunks.closed.is_set()
        assert (len(alone.sender.sent), chunks.made) == (4, 4)
        called = FakeRequest(deadline_s=seconds(NO_TIME_S), lease=text(lease.token))
        make(FakePb(), MUSIC_GENERATOR).stream([called], chunks)
        assert isinstance(outcome(called), RequestTimeout)


def test_whoever_waits_for_a_place_waits_until_the_deadline_and_the_others_are_not_hurt():
    adapter = make(FakePb(), max_concurrent=1, max_waiting=1)
    go_on, begun = threading.Event(), []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        begun.append(inputs["text"][0])
        assert go_on.wait(WAIT_S)
        return {"prompt": inputs["text"]}

    at_work = FakeRequest(text=text("a"))
    late = FakeRequest(text=text("b"), deadline_s=seconds(LITTLE_S))
    next_one = FakeRequest(text=text("c"), deadline_s=seconds(ENOUGH_S))
    adapter.answer_concurrently([at_work, late], describe)
    assert isinstance(outcome(late), RequestTimeout)  # though the first is still at work
    adapter.answer_concurrently([next_one], describe)  # its place is free
    go_on.set()
    assert outcome(at_work).arrays() == {"prompt": [b"a"]}
    assert outcome(next_one).arrays() == {"prompt": [b"c"]}
    assert begun == [b"a", b"c"]


def test_an_answer_that_comes_after_the_deadline_is_none():
    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        while context.left_s():
            time.sleep(0.01)
        return {"prompt": inputs["text"]}

    request = FakeRequest(text=text("a"), deadline_s=seconds(LITTLE_S))
    make(FakePb()).answer_concurrently([request], describe)
    assert isinstance(outcome(request), RequestTimeout)


@pytest.mark.parametrize(("given", "logged"), [("a" * 1_000, "a" * 100), ("one\ntwo", r"'one\ntwo'"), ("é 7", "é 7")])
def test_the_log_names_the_request(given, logged):
    pb = FakePb()
    request = FakeRequest(request_id=given, text=text("a"), deadline_s=seconds(NO_TIME_S))
    make(pb).answer_concurrently([request], lambda inputs, context: {})
    outcome(request)
    reason = "the deadline passed before music_prompt was done"
    assert pb.Logger.lines == [f"music_prompt: not done in time: request {logged}: {reason}"]


def test_a_request_without_an_id_gets_one():
    ids: list[str] = []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        ids.append(context.request_id)
        return {}

    requests = [FakeRequest(), FakeRequest()]
    make(FakePb()).answer_concurrently(requests, describe)
    for request in requests:
        outcome(request)
    assert all(ids)
    assert len(set(ids)) == 2


# --- a model that is unloaded ---


class FakeGauges:
    """Stands for Triton's metric families, and keeps what was last written."""

    GAUGE = "gauge"

    def __init__(self, **_: Any) -> None:
        self.value = 0.0

    def Metric(self, labels: dict[str, str]) -> FakeGauges:  # noqa: N802
        return self

    def set(self, value: float) -> None:
        self.value = value


def test_closing_ends_every_thread_of_the_adapter(monkeypatch):
    monkeypatch.setattr("attune_ensemble.serving.adapter._METRICS_PERIOD_S", 0.01)
    before = set(threading.enumerate())
    pb = FakePb()
    pb.MetricFamily = FakeGauges  # type: ignore[attr-defined]
    adapter, read = make(pb), threading.Event()
    adapter.publish({"slots": "that play"}, lambda: read.set() or {"slots": 1.0})  # type: ignore[func-returns-value]
    request = FakeRequest(text=text("a"))
    adapter.answer_concurrently([request], lambda inputs, context: {"prompt": inputs["text"]})
    outcome(request)
    assert read.wait(WAIT_S)
    watch, metrics = (
        next(thread for thread in set(threading.enumerate()) - before if thread.name == f"music_prompt-{work}")
        for work in ("watch", "metrics")
    )
    adapter.close()
    assert not watch.is_alive()
    assert not metrics.is_alive()
    assert pb.Logger.lines == ["music_prompt: released"]


def test_metrics_that_could_not_be_read_are_read_again_and_the_log_says_so_once(monkeypatch):
    monkeypatch.setattr("attune_ensemble.serving.adapter._METRICS_PERIOD_S", 0.01)
    pb = FakePb()
    pb.MetricFamily = FakeGauges  # type: ignore[attr-defined]
    adapter, errors, read = make(pb), [Panic("poisoned"), ValueError("gone")], threading.Event()

    def slots() -> dict[str, float]:
        if errors:
            raise errors.pop(0)
        read.set()
        return {"slots": 1.0}

    adapter.publish({"slots": "that play"}, slots)
    assert read.wait(WAIT_S)
    adapter.close()
    assert pb.Logger.lines == [
        "music_prompt: its metrics cannot be read: Panic('poisoned')",
        "music_prompt: released",
    ]


def test_one_who_cannot_be_told_keeps_no_other_from_hearing_that_nobody_waits():
    lines: list[str] = []
    told: list[str] = []
    sender = FakeSender()
    reply = Reply(sender, 1, log=lines.append)

    def fail() -> None:
        raise Panic("poisoned")

    for tell in (lambda: told.append("first"), fail, lambda: told.append("last")):
        reply.when_abandoned(tell)
    sender.cancelled = True
    reply.look()
    assert told == ["first", "last"]
    assert lines == ["one that works for an abandoned request could not be told: Panic('poisoned')"]


# --- one too many is told so at once ---


def test_one_too_many_is_refused_at_once_and_told_when_to_come_back():
    adapter = make(FakePb(), MUSIC_GENERATOR, max_concurrent=2, max_waiting=1)
    go_on = threading.Event()

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        assert go_on.wait(WAIT_S)
        yield {"engine": "a"}

    requests = [FakeRequest() for _ in range(4)]
    started_s = time.monotonic()
    adapter.stream(requests, play)
    refused = outcome(requests[3])
    assert time.monotonic() - started_s < SOON_S
    assert isinstance(refused, ServerBusy)
    assert requests[3].sender.sent[0].error().code() == FakeTritonError.UNAVAILABLE
    assert re.fullmatch(r"music_generator has 2 requests at work and 1 waiting; try again in \d+ s", str(refused))
    assert refused.retry_after_s is not None
    assert refused.retry_after_s >= 1
    go_on.set()
    for request in requests[:3]:
        assert outcome(request).arrays() == {"engine": ["a"]}
    again = FakeRequest()
    adapter.stream([again], play)
    assert outcome(again).arrays() == {"engine": ["a"]}


def test_one_that_was_cancelled_before_it_came_takes_no_place():
    adapter = make(FakePb(), max_concurrent=1, max_waiting=1)
    go_on = threading.Event()

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        assert go_on.wait(WAIT_S)
        return {"prompt": inputs["text"]}

    at_work, next_one = (FakeRequest(text=text(name)) for name in ("first", "next"))
    adapter.answer_concurrently([at_work], describe)
    for _ in range(20):  # whether the watch looks before or after the place was taken is a matter of luck
        gone = FakeRequest(text=text("gone"))
        gone.sender.cancelled = True
        adapter.answer_concurrently([gone], describe)
        assert isinstance(outcome(gone), RequestCancelled)
    adapter.answer_concurrently([next_one], describe)
    go_on.set()
    assert outcome(next_one).arrays() == {"prompt": [b"next"]}


def test_work_that_raises_gives_its_place_back():
    places, done = Places("model", at_work=1, waiting=2), threading.Event()

    def fail() -> None:
        raise ValueError("nobody foresaw this")

    places.take(fail)
    places.take(fail)
    places.take(done.set)
    assert done.wait(WAIT_S)


def test_an_error_without_a_code_of_its_own_is_for_the_log_alone():
    class LibraryError(AttuneError):
        """Of a room of ours, and no part of the protocol."""

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        raise LibraryError("/models/music_generator/1/musicgen holds no checkpoint")

    pb = FakePb()
    request = FakeRequest(text=text("x"))
    make(pb).answer_concurrently([request], describe)
    told = outcome(request)
    assert type(told) is ServerError
    assert "/models" not in str(told)
    assert any("/models/music_generator" in line for line in pb.Logger.lines)


def test_those_who_wait_are_served_in_their_order():
    adapter = make(FakePb(), max_concurrent=1, max_waiting=9)
    begun: list[bytes] = []

    def describe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        begun.append(inputs["text"][0])
        time.sleep(0.01)
        return {"prompt": inputs["text"]}

    requests = [FakeRequest(text=text(str(index))) for index in range(10)]
    adapter.answer_concurrently(requests, describe)
    outcome(requests[-1])
    assert begun == [str(index).encode() for index in range(10)]


def test_a_busy_engine_tells_when_to_come_back_too():
    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        raise ServerBusy("64 requests wait already")
        yield {}

    request = FakeRequest()
    make(FakePb(), MUSIC_GENERATOR).stream([request], play)
    assert re.fullmatch(r"64 requests wait already; try again in \d+ s", str(outcome(request)))


def test_a_request_that_cannot_be_read_fails_alone():
    class Broken(FakeRequest):
        def inputs(self) -> list[FakeTensor]:
            raise ValueError("unexpected end of a BYTES tensor")

    broken, good = Broken(), FakeRequest(text=text("a"))
    make(FakePb()).answer_concurrently([broken, good], lambda inputs, context: {"prompt": inputs["text"]})
    assert isinstance(outcome(broken), ServerError)
    assert outcome(good).arrays() == {"prompt": [b"a"]}


# --- numbers that are none ---


@pytest.mark.parametrize(
    ("spec", "outputs", "fault"),
    [
        (SPEECH_EMOTION, {"vad": [np.nan, 3, 3]}, "vad holds values that are not finite"),
        (SPEECH_EMOTION, {"vad": [3, 3, 5.5]}, r"vad holds values outside 1\.\.5"),
        (SPEECH_EMOTION, {"emotion_probabilities": [-0.5] * 40}, r"emotion_probabilities holds values outside 0\.\.1"),
        (MUSIC_GENERATOR, {"music": [[np.inf]]}, "music holds values that are not finite"),
        (MUSIC_PROMPT, {"similarity": [np.nan]}, "similarity holds values that are not finite"),
    ],
)
def test_numbers_that_are_none_are_an_error_going_out_and_coming_in(spec, outputs, fault, streams):
    pb = FakePb()
    (response,) = make(pb, spec).answer([FakeRequest()], lambda inputs: outputs)
    error = from_wire(response.error().message())
    assert type(error) is ServerError
    assert re.search(fault, str(error))
    answered = {name: np.array(value, np.float32) for name, value in outputs.items()}
    streams(lambda name, inputs: iter([answered]))
    called = make(FakePb(lambda name, inputs: FakeResponse([FakeTensor(*tensor) for tensor in answered.items()])))
    with pytest.raises(ServerError, match=fault):
        list((called.call_stream if spec.decoupled else called.call)(spec.name, {}, context=UNLIMITED))


def test_what_rounding_adds_to_a_limit_is_allowed():
    (response,) = make(FakePb(), SPEECH_EMOTION).answer([FakeRequest()], lambda inputs: {"vad": [1, 3, 5.0005]})
    assert not response.has_error()


# --- what is no Exception ends a request as an error does ---


class Panic(BaseException):
    """Stands for the panic of a library in Rust, which is no Exception."""


def panicking(outputs: list[dict[str, Any]]) -> Callable[..., Iterator[dict[str, Any]]]:
    """A stream that panics after those outputs."""

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        yield from outputs
        raise Panic("index out of bounds")

    return play


@pytest.mark.parametrize("outputs", [[], [{"engine": "a"}]])
def test_a_panic_is_told_and_gives_its_place_back(outputs):
    pb = FakePb()
    adapter = make(pb, MUSIC_GENERATOR, max_concurrent=1, max_waiting=0)
    request, after = FakeRequest(), FakeRequest()
    adapter.stream([request], panicking(outputs))
    ended = outcome(request)
    assert type(ended) is ServerError
    assert str(ended) == "music_generator failed; see the server's log"
    assert "Panic: index out of bounds" in pb.Logger.lines[0]
    assert not adapter._watch._replies
    wait_until(lambda: adapter._places._running == 0)
    adapter.stream([after], lambda inputs, context: ({"engine": name} for name in "b"))
    assert outcome(after).arrays() == {"engine": ["b"]}


def test_a_panic_fails_its_own_request_alone():
    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        if "text" not in inputs:
            raise Panic
        return {"prompt": inputs["text"]}

    bad, good = make(FakePb()).answer([FakeRequest(), FakeRequest(text=text("a"))], describe)
    assert type(from_wire(bad.error().message())) is ServerError
    assert good.arrays() == {"prompt": [b"a"]}


def test_a_panic_while_a_called_model_answers_reaches_the_caller_at_once():
    def called(name: str, inputs: dict[str, np.ndarray]) -> Any:
        raise Panic

    with pytest.raises(Panic):
        make(FakePb(called)).call("speech_to_text", {"audio": text("a")}, context=UNLIMITED, timeout_s=WAIT_S)


def test_an_error_that_cannot_be_told_ends_the_request_all_the_same():
    class Wordless(InvalidOption):
        def __str__(self) -> str:
            raise Panic("no words")

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        raise Wordless
        yield {}

    pb = FakePb()
    adapter = make(pb, MUSIC_GENERATOR)
    request = FakeRequest()
    adapter.stream([request], play)
    ended = outcome(request)
    assert type(ended) is ServerError
    assert str(ended) == "music_generator failed; see the server's log"
    assert "its error could not be told: Panic('no words')" in pb.Logger.lines[-1]
    wait_until(lambda: adapter._places._running == 0)


def test_a_last_response_that_panics_gives_its_place_back():
    pb = FakePb()
    adapter = make(pb, max_concurrent=1, max_waiting=0)
    request = FakeRequest(text=text("a"))
    asked = threading.Event()

    def send(response: FakeResponse | None = None, flags: int = 0) -> None:
        asked.set()
        raise Panic("the pipe broke")

    request.sender.send = send  # type: ignore[method-assign]
    adapter.answer_concurrently([request], lambda inputs, context: {"prompt": inputs["text"]})
    assert asked.wait(WAIT_S)
    wait_until(lambda: adapter._places._running == 0)
    assert pb.Logger.lines == ["music_prompt: the last response could not be sent: the pipe broke"]


def test_work_that_panics_leaves_its_place_to_the_next():
    places, begun, done = Places("model", at_work=1, waiting=1), threading.Event(), threading.Event()

    def panic() -> None:
        assert begun.wait(WAIT_S)
        raise Panic

    places.take(panic)
    places.take(done.set)
    begun.set()
    assert done.wait(WAIT_S)
    wait_until(lambda: places._running == 0)


def test_where_no_thread_starts_no_place_is_taken(monkeypatch):
    places, done = Places("model", at_work=1, waiting=0), threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            places.take(lambda: None)
    places.take(done.set)
    assert done.wait(WAIT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)
