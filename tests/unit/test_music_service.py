"""The music service and the therapy stream, with a stand-in engine: `pytest tests/unit/test_music_service.py`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from attune_client.protocol.errors import (
    InvalidOption,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    StreamEndedEarly,
)
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.sampling import SamplingSettings
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.call import CallContext
from attune_ensemble.music import service as service_module
from attune_ensemble.music.plan import ConstantPlan
from attune_ensemble.music.registry import EngineOptions
from attune_ensemble.music.service import MusicService, read_request

SPEC = MusicSpec(72.0, "dorian", "D", ("piano", "cello"), "mp")


class CountingEngine:
    """Plays one frame a second, and counts how far it came; it stops after `at_most` of them."""

    name, sample_rate = "counter", 1

    def __init__(self):
        self.made = 0
        self.at_most = 1_000
        self.request = None
        self.closed = False

    def close(self):
        self.closed = True

    def generate(self, request, chunk_s):
        self.request = request
        for _ in range(min(self.at_most, round(request.duration_s / chunk_s))):
            self.made += 1
            yield np.full((1, 2), self.made, np.float32)


@pytest.fixture
def engine(monkeypatch):
    engine = CountingEngine()

    def create(name, options):
        if name != "counter":
            raise InvalidOption(f"no engine {name}")
        return engine

    monkeypatch.setattr(service_module, "create_engine", create)
    return engine


def inputs(**more):
    return {"prompt": bytes_tensor("slow"), "music_spec": bytes_tensor(SPEC.to_json())} | more


def test_the_engine_announces_itself_before_it_works(engine):
    responses = MusicService("counter", 1.0, EngineOptions()).play(inputs(duration_s=np.array([3], np.float32)))
    announcement = next(responses)
    assert (announcement["engine"], announcement["sample_rate"]) == ("counter", [1])
    assert announcement["duration_s"] == [3.0]
    assert engine.made == 0
    assert [response["music"][0, 0] for response in responses] == [1, 2, 3]


def test_closing_stops_the_engine(engine):
    responses = MusicService("counter", 1.0, EngineOptions()).play(inputs())
    next(responses), next(responses)
    responses.close()
    assert engine.made == 1


@pytest.mark.parametrize("end", ["closed", "cancelled"])
def test_music_that_is_left_is_closed_whoever_else_holds_it(monkeypatch, end):
    class Holding(CountingEngine):
        stopped = False

        def generate(self, request, chunk_s):
            self.music = self.playing()
            return self.music

        def playing(self):
            try:
                while True:
                    yield np.ones((1, 2), np.float32)
            finally:
                self.stopped = True

    engine, cancelled = Holding(), []
    monkeypatch.setattr(service_module, "create_engine", lambda *_: engine)
    context = CallContext(deadline=time.monotonic() + 60, is_cancelled=lambda: bool(cancelled))
    responses = MusicService("holding", 1.0, EngineOptions()).play(inputs(), context=context)
    next(responses), next(responses)
    assert not engine.stopped
    if end == "closed":
        responses.close()
    else:
        cancelled.append(True)
        with pytest.raises(RequestCancelled):
            next(responses)
    assert engine.stopped


def test_defaults_and_options_reach_the_engine(engine):
    service = MusicService("counter", 1.0, EngineOptions())
    for options, duration_s in (({}, 30.0), ({"duration_s": np.array([2.0]), "seed": np.array([7])}, 2.0)):
        announcement, *_ = service.play(inputs(**options))
        assert engine.request.duration_s == duration_s
        assert announcement["seed"] == [engine.request.seed]
        assert engine.request.plan == ConstantPlan(SPEC, "slow")
    assert engine.request.seed == 7


def test_a_seed_that_was_not_sent_is_drawn_and_every_json_reader_keeps_it(engine):
    service = MusicService("counter", 1.0, EngineOptions())
    seeds = {next(service.play(inputs()))["seed"][0] for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_a_check_announces_and_plays_nothing(engine):
    service = MusicService("counter", 1.0, EngineOptions())
    nothing = {"prompt": bytes_tensor(""), "music_spec": bytes_tensor(""), "check_only": np.array([1], np.int32)}
    (announcement,) = service.play(nothing | {"seed": np.array([3])})
    assert (announcement["engine"], announcement["seed"]) == ("counter", [3])
    assert engine.made == 0
    for wrong in ({"engine": bytes_tensor("theremin")}, {"duration_s": np.array([0.5])}, {"seed": np.array([-1])}):
        with pytest.raises(InvalidOption):
            next(service.play(nothing | wrong))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": bytes_tensor("theremin")}, "theremin"),
        ({"duration_s": np.array([0.5])}, "duration_s"),
        ({"duration_s": np.array([np.nan])}, "duration_s"),
        ({"duration_s": np.array([601.0])}, "duration_s"),
        ({"seed": np.array([-1])}, "seed"),
        ({"music_spec": bytes_tensor("{}")}, "JSON object with tempo_bpm"),
        ({"music_spec": bytes_tensor("[" * 5_000)}, "JSON object"),
        ({"music_spec": bytes_tensor(SPEC.to_json().replace("piano", "kazoo"))}, "kazoo"),
        ({"music_spec": bytes_tensor(SPEC.to_json().replace("72.0", "NaN"))}, "tempo_bpm"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_sent(engine, options, words):
    with pytest.raises(InvalidOption, match=words):
        next(MusicService("counter", 1.0, EngineOptions()).play(inputs(**options)))


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_request(inputs(prompt=np.array([b"\xff\xfe"], dtype=np.object_)), 30.0, 1)


def test_pieces_played_at_once_are_the_pieces_played_alone():
    service = MusicService("composer", 1.0, EngineOptions())
    requests = [inputs(seed=np.array([seed]), duration_s=np.array([6.0])) for seed in range(4)]

    def play(request):
        return np.concatenate([response["music"] for response in service.play(request) if "music" in response])

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(play, requests))
    for request, piece in zip(requests, together, strict=True):
        np.testing.assert_array_equal(piece, play(request))


def test_a_spec_survives_json():
    assert MusicSpec.from_json(SPEC.to_json()) == SPEC


def test_settings_of_sampling_are_read_and_the_composer_refuses_them():
    request = read_request(inputs(top_k=np.array([5], np.int32), guidance=np.array([2], np.float32)), 30.0, 1)
    assert request.sampling == SamplingSettings(top_k=5, guidance=2.0)
    assert read_request(inputs(), 30.0, 1).sampling is None
    responses = MusicService("composer", 1.0, EngineOptions()).play(inputs(top_k=np.array([5], np.int32)))
    next(responses)
    with pytest.raises(InvalidOption, match="the composer samples nothing"):
        next(responses)


def test_silence_of_an_engine_is_not_sent(monkeypatch):
    class Waiting(CountingEngine):
        def generate(self, request, chunk_s):
            yield np.zeros((0, 1), np.float32)
            yield np.ones((30, 1), np.float32)

        def metrics(self):
            return {"waits": 1.0}

    monkeypatch.setattr(service_module, "create_engine", lambda *_, **__: Waiting())
    service = MusicService("waiting", 1.0, EngineOptions())
    _announcement, nothing, chunk = service.play(inputs())
    assert nothing == {}
    assert chunk["music"].shape == (30, 1)
    assert service.metrics() == {"waits": 1.0}


# --- nothing is cut short in silence ---


def test_an_engine_that_ends_early_is_an_error_after_what_it_made(engine):
    engine.at_most = 19
    responses = MusicService("counter", 1.0, EngineOptions()).play(inputs(duration_s=np.array([600], np.float32)))
    for _ in range(20):
        next(responses)
    with pytest.raises(StreamEndedEarly, match=r"19\.0 s of 600 s"):
        next(responses)


# --- deadlines, and the end ---


def test_music_ends_at_the_deadline_and_its_engine_stops(engine):
    over = []
    context = CallContext(deadline=time.monotonic() + 60, is_cancelled=lambda: bool(over))
    responses = MusicService("counter", 1.0, EngineOptions()).play(inputs(), context=context)
    next(responses), next(responses)
    assert 50 < engine.request.deadline_s <= 60  # for an engine that serves several at once
    over.append(True)
    with pytest.raises(RequestCancelled):
        next(responses)
    assert engine.made == 2
    late = MusicService("counter", 1.0, EngineOptions()).play(inputs(), context=CallContext.within(0.0))
    next(late)
    with pytest.raises(RequestTimeout, match="before the music was done"):
        next(late)


def test_an_engine_that_is_being_made_is_not_waited_for_beyond_the_deadline(monkeypatch):
    go_on = threading.Event()

    def create(name, options):
        assert name == "counter" or go_on.wait(5)
        return CountingEngine()

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    with pytest.raises(RequestTimeout, match="before the music was done"):
        list(service.play(inputs(engine=bytes_tensor("slow")), context=CallContext.within(0.3)))
    go_on.set()


def test_closing_closes_every_engine_and_one_that_is_still_being_made(monkeypatch):
    go_on, made = threading.Event(), []

    def create(name, options):
        assert name == "counter" or go_on.wait(5)
        if name == "broken":
            raise ServerError("no memory")
        made.append(CountingEngine())
        return made[-1]

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    for name in ("slow", "broken"):
        next(service.play(inputs(engine=bytes_tensor(name))))
    service.close()  # at once, while they are being made
    assert [engine.closed for engine in made] == [True]
    go_on.set()
    wait_for(lambda: len(made) == 2 and made[-1].closed)


def wait_for(condition):
    until_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_closed_service_makes_no_engine(engine):
    service = MusicService("counter", 1.0, EngineOptions())
    service.close()
    assert engine.closed
    with pytest.raises(ServerUnavailable, match="closing"):
        next(service.play(inputs()))
    assert service._engines == {}
    service.close()


def test_whoever_waits_for_an_engine_does_not_get_one_that_was_closed(monkeypatch):
    go_on = threading.Event()

    def create(name, options):
        assert name == "counter" or go_on.wait(5)
        return CountingEngine()

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    responses = service.play(inputs(engine=bytes_tensor("slow")))
    assert next(responses) == {}
    service.close()
    go_on.set()
    with pytest.raises(ServerUnavailable, match="closing"):
        list(responses)


def test_an_engine_that_cannot_be_closed_keeps_no_other_from_it(monkeypatch, caplog):
    class Stuck(CountingEngine):
        def close(self):
            raise ServerError("stuck")

    made = {}

    def create(name, options):
        made[name] = Stuck() if name == "counter" else CountingEngine()
        return made[name]

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    list(service.play(inputs(engine=bytes_tensor("other"))))
    service.close()
    assert made["other"].closed
    assert "stuck" in caplog.text


# --- an engine that is being made ---


def test_listeners_may_go_while_an_engine_is_being_made(monkeypatch):
    go_on, made = threading.Event(), []

    def create(name, options):
        if name == "slow":
            assert go_on.wait(5)
        made.append(name)
        return CountingEngine()

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    first, second = (service.play(inputs(engine=bytes_tensor("slow"))) for _ in range(2))
    started_s = time.monotonic()
    assert [next(first), next(first), next(second)] == [{}, {}, {}]
    assert time.monotonic() - started_s < 1
    first.close()
    assert next(service.play(inputs()))["engine"] == "counter"  # another engine's listeners do not wait
    go_on.set()
    assert next(response for response in second if response)["engine"] == "counter"
    assert made == ["counter", "slow"]


def test_an_engine_that_could_not_be_made_is_tried_again(monkeypatch):
    failures = [ServerError("no memory")]

    def create(name, options):
        if name == "big" and failures:
            raise failures.pop()
        return CountingEngine()

    monkeypatch.setattr(service_module, "create_engine", create)
    service = MusicService("counter", 1.0, EngineOptions())
    with pytest.raises(ServerError, match="no memory"):
        list(service.play(inputs(engine=bytes_tensor("big"))))
    assert any("music" in response for response in service.play(inputs(engine=bytes_tensor("big"))))


@pytest.mark.parametrize(
    "options",
    [
        {"engine": bytes_tensor("x" * 1_000_000)},
        {"music_spec": bytes_tensor(SPEC.to_json().replace("dorian", "x" * 1_000_000))},
        {"music_spec": bytes_tensor(SPEC.to_json().replace("piano", "x" * 1_000_000))},
    ],
)
def test_what_was_sent_is_not_sent_back_whole(options):
    with pytest.raises(InvalidOption, match="xxx") as caught:
        next(MusicService("composer", 1.0, EngineOptions()).play(inputs(**options)))
    assert len(caught.value.to_wire()) < 1_000
