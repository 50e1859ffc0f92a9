"""The tiny requests, and who is asked when: `pytest tests/unit/test_supervisor_asking.py`."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace
from unittest import mock

import pytest
from tritonclient.grpc import model_config_pb2

from attune_client.messages import infer_request
from attune_client.protocol.errors import (
    InvalidOption,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)
from attune_client.protocol.models import DEADLINE, MODELS
from attune_client.protocol.profiles import PROFILES
from attune_client.protocol.tensors import DType, TensorSpec
from attune_ensemble.call import UNLIMITED
from attune_ensemble.serving.configuration import BrokenRepository, read_config
from attune_ensemble.serving.guard.checks import check_request
from attune_ensemble.serving.guard.requests import Request
from attune_ensemble.serving.guard.signatures import Input, signature_of
from attune_ensemble.serving.local import LocalModels
from attune_ensemble.serving.supervisor.asking import Asker
from attune_ensemble.serving.supervisor.policy import Ending
from attune_ensemble.serving.supervisor.probes import probe_of
from attune_ensemble.serving.supervisor.times import Times
from tests.conftest import ROOT

TIMES = Times(look_s=0.001, idle_s=0.005, answer_s=0.02, warm_s=0.03)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_requests_that_it_takes(model, profile):
    signature = signature_of(read_config(ROOT / "model_repository" / model, profile))
    probe = probe_of(signature)
    for inputs in filter(None, (probe.real, probe.tiny, probe.at_once)):
        check_request(Request.of(infer_request(probe.spec, inputs).SerializeToString()), signature)
    assert (probe.at_once is not None) == (DEADLINE in probe.spec.inputs)


def test_what_is_not_the_protocols_has_none():
    ours = signature_of(read_config(ROOT / "model_repository" / "valence"))
    assert probe_of(ours) is not None
    assert probe_of(replace(ours, name="somebodys")) is None
    assert probe_of(replace(ours, inputs={"pixels": Input("FP32", (3,))})) is None


def test_an_input_without_a_value_of_its_own_gets_one_of_the_declared_size():
    ours = signature_of(read_config(ROOT / "model_repository" / "emotion_classifier"))
    other = replace(ours, inputs={**ours.inputs, "vad": Input("FP32", (-1, 3))})
    spec = replace(MODELS[ours.name], inputs=(*MODELS[ours.name].inputs, TensorSpec("vad", DType.FP32, (-1, 3))))
    with mock.patch.dict(MODELS, {ours.name: spec}):
        assert probe_of(other).real["vad"].shape == (1, 16, 3)


def test_the_first_inference_is_a_whole_one():
    """Speech that is recognised as such, so that everything that a request needs is loaded."""

    def probe(model):
        return probe_of(signature_of(read_config(ROOT / "model_repository" / model)))

    with LocalModels(ROOT / "model_repository") as models:
        heard = models.call("speech_to_text", probe("speech_to_text").real, context=UNLIMITED)
        assert heard["num_samples"][0, 0] > 8_000
        music = list(models.call_stream("music_generator", probe("music_generator").real, context=UNLIMITED))
        assert "music" in music[-1]
        checked = list(models.call_stream("music_generator", probe("music_generator").tiny, context=UNLIMITED))
        assert not any("music" in response for response in checked)


class FakeServer:
    """Answers as it is told: `answers[model]` is an error to raise; counts what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Exception] = {}
        self.asked: list[tuple[str, dict]] = []
        self.counts: Counter[str] = Counter()
        self.is_silent = False

    def configuration(self, model):
        if model in MODELS:
            return read_config(ROOT / "model_repository" / model)
        return model_config_pb2.ModelConfig(name=model)

    def progress(self):
        if self.is_silent:
            raise ServerUnavailable("gone")
        return {name: (self.counts[name],) for name in MODELS}

    def ask(self, model, inputs, timeout_s):
        self.asked.append((model.name, inputs))
        if error := self.answers.get(model.name):
            raise error
        self.counts[model.name] += 1
        return 1


@pytest.fixture
def told():
    return []


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def asker(server, told):
    def make(models=("valence", "speech_emotion", "music_generator")):
        return Asker(server, models, TIMES, lambda event, **fields: told.append((event, fields)))

    return make


@pytest.fixture
def warm(asker, server):
    """One that has asked every model once, of which nothing is counted."""

    warm = asker()
    warm.warm_up()
    server.asked.clear()
    return warm


def test_every_model_is_warmed_and_what_others_use_before_them(asker, server, told):
    asking = asker(("somebodys", *reversed(MODELS)))
    asking.warm_up()
    asked = [name for name, _ in server.asked]
    assert sorted(asked) == sorted(MODELS)
    for model, spec in MODELS.items():
        needed = {each.name for each in (*spec.calls, *spec.steps)}
        assert needed <= asking.needed_by(model)
        assert needed <= set(asked[: asked.index(model)])
    assert told == [("not_probed", {"model": "somebodys", "reason": "it is none of the protocol's"})]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ServerError("no graph"), BrokenRepository),
        (RequestTimeout("late"), ServerUnavailable),
        (ServerUnavailable("gone"), ServerUnavailable),
    ],
)
def test_a_model_that_does_not_do_its_first_inference_is_named(asker, server, answer, error):
    server.answers["valence"] = answer
    with pytest.raises(error, match=r"valence|gone") as caught:
        asker().warm_up()
    assert isinstance(caught.value, BrokenRepository) == (error is BrokenRepository)


def test_a_first_inference_that_is_refused_is_an_answer_and_told(asker, server, told):
    server.answers["valence"] = InvalidOption("not this")
    asker().warm_up()
    assert told == [("probe_refused", {"model": "valence", "reason": "not this"})]


class Watcher:
    """Runs `look_after` until something is unresponsive, or for so many rounds."""

    def __init__(self, *, busy=False, away=()) -> None:
        self.over = threading.Event()
        self.busy, self.away = busy, set(away)
        self.core_share = 0.0  # of a core, that every model uses
        self._clock_s = 0.0
        self.found: list[tuple[str, Ending]] = []
        self.server_was_silent = False

    def look_after(self, asker: Asker, server: FakeServer, asks: int = 12) -> None:
        before = server.ask

        def ask(model, inputs, timeout_s):
            if len(server.asked) >= asks:
                self.over.set()
            return before(model, inputs, timeout_s)

        server.ask = ask
        thread = threading.Thread(
            target=asker.look_after,
            args=(
                self.over,
                lambda: self.busy,
                lambda model: model in self.away,
                self._processor_seconds,
                self._unresponsive,
                self._server_unresponsive,
            ),
        )
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    def _unresponsive(self, model, ending):
        self.found.append((model, ending))
        self.over.set()

    def _processor_seconds(self, model):
        self._clock_s += self.core_share * TIMES.answer_s  # it is looked at before and after a question
        return self._clock_s

    def _server_unresponsive(self):
        self.server_was_silent = True


def test_idle_models_are_asked_what_costs_little(warm, server):
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert {name for name, _ in server.asked} == {"valence", "speech_emotion", "music_generator"}
    inputs = dict(server.asked)
    assert "check_only" in inputs["music_generator"]
    assert DEADLINE.name not in inputs["speech_emotion"]
    assert watcher.found == []


def test_while_there_is_much_to_do_what_is_asked_needs_no_place(warm, server):
    watcher = Watcher(busy=True)
    watcher.look_after(warm, server)
    assert dict(server.asked)["speech_emotion"][DEADLINE.name][0] < 0


def test_a_model_that_works_is_not_asked(warm, server):
    def progress():
        server.counts["valence"] += 1
        return {name: (server.counts[name],) for name in MODELS}

    server.progress = progress
    Watcher().look_after(warm, server)
    assert "valence" not in {name for name, _ in server.asked}


def test_a_model_that_is_away_is_not_asked(warm, server):
    Watcher(away=["valence"]).look_after(warm, server)
    assert "valence" not in {name for name, _ in server.asked}


def test_a_model_that_answers_nothing_is_unresponsive(warm, server):
    server.answers["valence"] = RequestTimeout("late")
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert watcher.found == [("valence", Ending.SILENT)]
    assert [name for name, _ in server.asked].count("speech_emotion") == 0, "it needs the other one"


@pytest.mark.parametrize(("core_share", "asked"), [(0.0, 1), (0.1, 1), (1.0, 4)])
def test_a_model_at_work_on_one_long_request_is_given_time_but_not_for_ever(warm, server, core_share, asked):
    server.answers["valence"] = RequestTimeout("late")
    watcher = Watcher()
    watcher.core_share = core_share
    watcher.look_after(warm, server, asks=100)
    assert watcher.found == [("valence", Ending.SILENT)]
    assert [name for name, _ in server.asked].count("valence") == asked


def test_a_model_that_answers_again_has_all_that_time_anew(warm, server):
    answers = itertools.cycle([RequestTimeout("late"), RequestTimeout("late"), None])

    def ask(model, inputs, timeout_s):
        server.asked.append((model.name, inputs))
        if model.name == "valence" and (error := next(answers)) is not None:
            raise error

    server.ask = ask
    watcher = Watcher()
    watcher.core_share = 1.0
    watcher.look_after(warm, server, asks=60)
    assert watcher.found == []


def test_a_model_that_is_slow_but_gets_on_is_left_alone(warm, server):
    def ask(model, inputs, timeout_s):
        server.asked.append((model.name, inputs))
        server.counts[model.name] += 1
        raise RequestTimeout("others came first")

    server.ask = ask
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert watcher.found == []


@pytest.mark.parametrize("answer", [InvalidOption("no"), ServerBusy("full", 3), ServerUnavailable("a stage is away")])
def test_a_refusal_is_an_answer(warm, server, answer):
    server.answers["valence"] = answer
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert watcher.found == []


def test_a_model_that_fails_again_and_again_is_unresponsive(warm, server, told):
    server.answers["valence"] = ServerError("device lost")
    watcher = Watcher()
    watcher.look_after(warm, server, asks=100)
    assert watcher.found == [("valence", Ending.FAILING)]
    assert told == [("probe_failed", {"model": "valence", "reason": "device lost"})] * 3


@pytest.mark.parametrize("error", [ServerError("device lost"), RequestTimeout("late")])
def test_a_model_that_was_brought_back_begins_anew(warm, server, error):
    def asked_until_found() -> int:
        server.asked.clear()
        server.answers["valence"] = error
        watcher = Watcher()
        watcher.core_share = 1.0
        watcher.look_after(warm, server, asks=100)
        assert [model for model, _ in watcher.found] == ["valence"]
        return [name for name, _ in server.asked].count("valence")

    first = asked_until_found()
    assert first > 1
    server.answers.clear()
    warm.warm("valence")
    assert asked_until_found() == first


def test_a_server_that_does_not_answer_is_unresponsive(warm, server):
    server.is_silent = True
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert watcher.server_was_silent


def test_a_moment_without_an_answer_is_nothing(warm, server):
    answers = iter([True, True, False])
    steady = server.progress

    def progress():
        server.is_silent = next(answers, False)
        return steady()

    server.progress = progress
    watcher = Watcher()
    watcher.look_after(warm, server)
    assert not watcher.server_was_silent
