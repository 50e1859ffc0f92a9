"""What adapters share, with a stand-in for Triton's pb_utils: answers, streams, calls, errors, and an end.

pytest tests/unit/test_serving_adapter.py
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    SilentAudio,
    from_wire,
)
from attune_client.protocol.models import MUSIC_GENERATOR, MUSIC_PROMPT, SPEECH_EMOTION, SPEECH_TO_TEXT
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter
from attune_ensemble.serving.lease import Lease, is_held
from attune_ensemble.serving.reply import Reply
from tests.fake_stub import (
    ARGS,
    WAIT_S,
    Counting,
    FakePb,
    FakeRequest,
    FakeResponse,
    FakeSender,
    FakeTensor,
    FakeTritonError,
    Panic,
    make,
    outcome,
    text,
    wait_until,
)


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


def test_who_asks_after_an_abandoned_request_was_ended_is_told_at_once():
    """As the watch ends one that is overdue while the thread that works for it stands still."""
    sender, told = FakeSender(), threading.Event()
    reply = Reply(sender, 1)
    sender.cancelled = True
    reply.look()
    reply.finish()
    with reply.context.on_cancel(told.set):
        assert told.is_set()


def test_who_asks_after_an_answer_is_told_nothing():
    told = threading.Event()
    reply = Reply(FakeSender(), 1)
    reply.finish()
    with reply.context.on_cancel(told.set):
        assert not told.is_set()


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
