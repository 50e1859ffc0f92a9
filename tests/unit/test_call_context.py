"""The context of a call, by a clock that only the tests move: `pytest tests/unit/test_call_context.py`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from attune_client.protocol.errors import RequestCancelled, RequestTimeout
from attune_ensemble import call
from attune_ensemble.call import UNLIMITED, CallContext


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(call, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_what_is_left_shrinks_to_nothing_and_then_it_is_over(clock):
    context = CallContext.within(3.0)
    for now_s, left_s in ((100.0, 3.0), (102.5, 0.5)):
        clock.now_s = now_s
        context.check("the transcript")
        assert context.left_s() == left_s
    for clock.now_s in (103.0, 200.0):
        assert context.left_s() == 0.0
        with pytest.raises(RequestTimeout, match=r"^the deadline passed before the transcript was done$"):
            context.check("the transcript")


def test_without_a_deadline_it_takes_as_long_as_it_takes(clock):
    clock.now_s = 1e9
    UNLIMITED.check()
    assert UNLIMITED.left_s() is None


def test_a_request_that_nobody_waits_for_is_over_too():
    gone = []
    context = CallContext(is_cancelled=lambda: bool(gone))
    context.check()
    gone.append(True)
    with pytest.raises(RequestCancelled):
        context.check()


def test_a_stage_has_the_deadline_of_its_request_and_a_longer_name(clock):
    context = CallContext(deadline=103.0, is_cancelled=lambda: True, request_id="a")
    stage = context.for_stage("music_therapy").for_stage("music_generator")
    assert stage.request_id == "a/music_therapy/music_generator"
    assert (stage.deadline, stage.is_cancelled()) == (103.0, True)
