"""Leases, cancellation and deadlines of an adapter's requests: nothing waits for ever, and nothing goes on for nobody.

pytest tests/unit/test_serving_waiting.py
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption, RequestCancelled, RequestTimeout
from attune_client.protocol.models import MUSIC_GENERATOR, MUSIC_PROMPT, SPEECH_TO_TEXT
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter
from attune_ensemble.serving.lease import Lease, is_held
from tests.fake_stub import (
    SOON_S,
    WAIT_S,
    Counting,
    Dead,
    FakePb,
    FakeRequest,
    FakeResponse,
    FakeSender,
    FakeTensor,
    FakeTritonError,
    make,
    outcome,
    text,
)


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
