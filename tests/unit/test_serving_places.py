"""The places of an adapter: how many requests are at work, how many wait, and what one too many is told.

pytest tests/unit/test_serving_places.py
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import RequestCancelled, ServerBusy
from attune_client.protocol.models import MUSIC_GENERATOR
from attune_ensemble.call import CallContext
from attune_ensemble.serving.places import Places
from tests.fake_stub import SOON_S, WAIT_S, FakePb, FakeRequest, FakeTritonError, Panic, make, outcome, text, wait_until


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
