"""What LocalModels adds to the services, with toy ones: `pytest tests/unit/test_local_models.py`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attune_client import LocalClient
from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
)
from attune_client.protocol.models import EMOTION_RECOGNITION, MODELS
from attune_client.protocol.profiles import EMBEDDED, PROFILES, config_path
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.knowledge import KnowledgeError
from attune_ensemble.serving import services
from attune_ensemble.serving.local import LocalModels
from attune_ensemble.serving.local.graphs import create_ensemble
from attune_ensemble.serving.services import SERVICES, Service
from attune_export.repository_config import model_config, render

SPEECH = {"audio": np.array([b"a recording"], dtype=np.object_)}
CALM = {"text": np.array(["calm"], dtype=np.object_)}


class Toys:
    """Services in the place of the real ones, which note what they were handed."""

    def __init__(self) -> None:
        self.hosts: dict[str, services.Host] = {}
        self.contexts: list[CallContext] = []
        self.closed: list[str] = []

    def of(self, name: str):
        def create(host: services.Host) -> Service:
            self.hosts[name] = host
            return Service(getattr(self, name), lambda: self.closed.append(name))

        return create

    def music_prompt(self, inputs, *, context):
        self.contexts.append(context)
        (text,) = inputs["text"]
        if text == b"bug":
            raise KeyError("a bug")
        if text == b"foreign":
            raise AttuneError("an error without a code")
        if text == b"bad":
            raise InvalidOption("no such mood")
        return {"prompt": "für dich", "similarity": np.nan if text == b"nan" else 1}

    def speech_emotion(self, inputs, *, context):
        prompt = self.hosts["speech_emotion"].call("music_prompt", CALM, context=context)["prompt"]
        return {"transcript": prompt, "vad": [1, 2, 3]}

    def music_generator(self, inputs, *, context):
        self.contexts.append(context)
        try:
            yield {"engine": "toy", "seed": 3}
            yield {}
            while True:
                yield {"music": np.zeros((4, 2))}
        finally:
            self.closed.append("a stream")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Every configuration, and files where files have to be; nothing in them."""
    for name in MODELS:
        for profile in PROFILES.values():
            path = tmp_path / config_path(name, profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(model_config(name, profile)))
            folder = tmp_path / name / "1"
            folder.mkdir(exist_ok=True)
            if file := model_config(name, profile).default_model_filename:
                (folder / file).touch()
    return tmp_path


@pytest.fixture
def toys(monkeypatch) -> Toys:
    toys = Toys()
    for name in ("music_prompt", "speech_emotion", "music_generator"):
        monkeypatch.setitem(SERVICES, name, toys.of(name))
    return toys


@pytest.fixture
def models(repository, toys):
    with LocalModels(repository) as models:
        yield models


def prompt_for(text: str) -> dict[str, np.ndarray]:
    return {"text": np.array([text], dtype=np.object_)}


def music() -> dict[str, np.ndarray]:
    return {name: np.array([""], dtype=np.object_) for name in ("prompt", "music_spec")}


def test_a_model_is_loaded_when_it_is_asked_for_and_once(models, toys):
    assert toys.hosts == {}
    models.call("music_prompt", CALM)
    host = toys.hosts["music_prompt"]
    models.call("music_prompt", CALM)
    assert toys.hosts == {"music_prompt": host}


def test_a_service_is_told_the_settings_of_its_profile(repository, toys):
    for profile, engine in (("embedded", "composer"), ("gpu", "musicgen")):
        with LocalModels(repository, profile) as models:
            next(models.call_stream("music_generator", music()))
        host = toys.hosts["music_generator"]
        assert host.settings["engine"] == engine
        assert host.folder == repository / "music_generator" / "1"


@pytest.mark.parametrize("profile", ["embedded", "gpu"])
@pytest.mark.parametrize(("device", "told"), [(None, "cpu"), ("cuda:1", "cuda:1")])
def test_a_service_computes_on_the_cpu_unless_a_device_is_given(repository, toys, profile, device, told):
    with LocalModels(repository, profile, device) as models:
        models.call("music_prompt", CALM)
    assert toys.hosts["music_prompt"].device == told


def test_outputs_take_the_declared_type_and_text_is_bytes(models):
    answer = models.call("music_prompt", CALM)
    assert answer["prompt"].tolist() == ["für dich".encode()]
    assert (answer["similarity"].dtype, answer["similarity"].tolist()) == (np.float32, [1])


def test_what_one_model_calls_is_of_the_same_request(models, toys):
    deadline = time.monotonic() + 60
    answer = models.call("speech_emotion", SPEECH, context=CallContext(deadline=deadline, request_id="one"))
    assert answer["transcript"].tolist() == ["für dich".encode()]
    (context,) = toys.contexts
    assert (context.deadline, context.request_id) == (deadline, "one/music_prompt")


@pytest.mark.parametrize(("asked_s", "given_s"), [(60, 600), (600, 60), (60, None)])
def test_the_sooner_deadline_counts(models, toys, asked_s, given_s):
    context = CallContext() if given_s is None else CallContext.within(given_s)
    models.call("music_prompt", CALM | {"deadline_s": np.array([asked_s], np.float32)}, context=context)
    assert 50 < toys.contexts[0].left_s() <= 60


def test_a_deadline_that_has_passed_begins_nothing(models, toys):
    with pytest.raises(RequestTimeout):
        models.call("music_prompt", CALM, context=CallContext(deadline=time.monotonic() - 1))
    assert (toys.contexts, toys.hosts) == ([], {})


# --- loading ---


@pytest.fixture
def slow(monkeypatch, toys):
    """The loading of `music_prompt` begins, and ends when `go` is set."""
    slow = SimpleNamespace(begun=threading.Event(), go=threading.Event(), times=0)

    def create(host: services.Host) -> Service:
        slow.times += 1
        slow.begun.set()
        assert slow.go.wait(30)
        return toys.of("music_prompt")(host)

    monkeypatch.setitem(SERVICES, "music_prompt", create)
    yield slow
    slow.go.set()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_a_call_to_a_loaded_model_does_not_wait_behind_the_loading_of_another(slow, models, pool):
    next(models.call_stream("music_generator", music()))
    loading = pool.submit(models.call, "music_prompt", CALM)
    assert slow.begun.wait(30)
    again = pool.submit(lambda: next(models.call_stream("music_generator", music())))
    try:
        assert again.result(10)["engine"].tolist() == [b"toy"]
        assert not loading.done()
    finally:
        slow.go.set()
    assert loading.result(10)


def test_a_model_that_two_ask_for_at_once_is_loaded_once(slow, models, pool):
    asked = [pool.submit(models.call, "music_prompt", CALM) for _ in range(2)]
    assert slow.begun.wait(30)
    slow.go.set()
    assert all(one.result(10) for one in asked)
    assert slow.times == 1


def test_the_deadline_counts_while_a_model_is_loaded(slow, models):
    with pytest.raises(RequestTimeout, match="loading music_prompt"):
        models.call("music_prompt", CALM | {"deadline_s": np.array([0.2], np.float32)})
    slow.go.set()
    assert models.call("music_prompt", CALM)
    assert slow.times == 1


def test_who_gives_up_does_not_wait_for_a_model_to_be_loaded(slow, models):
    with pytest.raises(RequestCancelled):
        models.call("music_prompt", CALM, context=CallContext(is_cancelled=slow.begun.is_set))


BROKEN = [RuntimeError("no such file"), KnowledgeError("no index"), ServerError("a graph failed"), KeyError("threads")]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("name", "inputs"), [("music_prompt", CALM), ("speech_emotion", SPEECH)])
def test_a_model_that_cannot_be_loaded_is_unavailable_with_a_cause(models, monkeypatch, toys, error, name, inputs):
    """Also when another model asks for it; whoever asks next tries again."""

    def create(host: services.Host) -> Service:
        raise error

    monkeypatch.setitem(SERVICES, "music_prompt", create)
    with pytest.raises(ServerUnavailable, match="music_prompt cannot be loaded") as caught:
        models.call(name, inputs)
    assert caught.value.__cause__ is error
    monkeypatch.setitem(SERVICES, "music_prompt", toys.of("music_prompt"))
    assert models.call(name, inputs)


def test_an_error_on_purpose_while_a_model_is_loaded_is_itself(models, monkeypatch):
    def create(host: services.Host) -> Service:
        raise InvalidOption("prompt_writer must be one of template")

    monkeypatch.setitem(SERVICES, "music_prompt", create)
    with pytest.raises(InvalidOption, match=r"^prompt_writer must"):
        models.call("music_prompt", CALM)


def test_a_stream_leaves_empty_responses_out_and_ends_when_it_is_closed(models, toys):
    stream = models.call_stream("music_generator", music())
    assert next(stream)["engine"].tolist() == [b"toy"]
    assert next(stream)["music"].dtype == np.float32
    stream.close()
    assert toys.closed == ["a stream"]


def test_a_model_that_answers_at_once_is_a_stream_of_one(models):
    assert [answer["prompt"].tolist() for answer in models.call_stream("music_prompt", CALM)] == [["für dich".encode()]]


def test_a_model_that_streams_does_not_answer_at_once(models):
    with pytest.raises(InvalidRequest, match="music_generator answers by a stream"):
        models.call("music_generator", music())


def test_there_are_no_other_models(models):
    with pytest.raises(InvalidOption, match="no model 'oracle'; the models are speech_to_text"):
        models.call("oracle", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [("bug", "KeyError: 'a bug'"), ("foreign", "without a code"), ("nan", "similarity holds values")],
)
def test_an_error_that_nobody_foresaw_is_a_server_error_with_its_cause(models, text, words):
    with pytest.raises(ServerError, match=f"music_prompt failed: .*{words}") as caught:
        models.call("music_prompt", prompt_for(text))
    assert text == "nan" or type(caught.value.__cause__) in (KeyError, AttuneError)


def test_an_error_on_purpose_is_itself(models):
    with pytest.raises(InvalidOption, match=r"^no such mood$"):
        models.call("music_prompt", prompt_for("bad"))


def test_closing_closes_what_was_loaded_and_ends_all(repository, toys):
    with LocalModels(repository) as models:
        models.call("music_prompt", CALM)
    assert toys.closed == ["music_prompt"]
    with pytest.raises(InvalidRequest, match="closed"):
        models.call("music_prompt", CALM)


class Patient:
    """A service that works until its request is cancelled, and notes in which order things end."""

    def __init__(self) -> None:
        self.begun, self.order = threading.Event(), []

    def by_asking(self, inputs, *, context):
        self.begun.set()
        self._until(lambda: context.is_cancelled())
        context.check("the work")

    def by_being_told(self, inputs, *, context):
        told = threading.Event()
        with context.on_cancel(told.set):
            self.begun.set()
            self._until(told.is_set)
        context.check("the work")

    def _until(self, ended):
        limit = time.monotonic() + 10
        while not ended() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)
        self.order.append("ended" if ended() else "never told")


@pytest.mark.parametrize("how", ["by_asking", "by_being_told"])
@pytest.mark.parametrize(("name", "inputs"), [("music_prompt", CALM), ("speech_emotion", SPEECH)])
def test_closing_cancels_what_runs_and_waits_for_its_end(models, monkeypatch, pool, how, name, inputs):
    patient = Patient()
    service = Service(getattr(patient, how), lambda: patient.order.append("closed"))
    monkeypatch.setitem(SERVICES, "music_prompt", lambda host: service)
    running = pool.submit(models.call, name, inputs)
    assert patient.begun.wait(30)
    models.close()
    assert patient.order == ["ended", "closed"]
    with pytest.raises(RequestCancelled):
        running.result(10)


def test_closing_ends_a_stream_that_nobody_asks_at_the_moment(models, toys):
    stream = models.call_stream("music_generator", music())
    next(stream)
    models.close()
    assert toys.closed == ["a stream", "music_generator"]
    with pytest.raises(InvalidRequest, match="closed"):
        next(stream)


def test_closing_cancels_a_stream_that_is_being_read(models, toys, pool):
    stream = models.call_stream("music_generator", music())
    next(stream)
    reading = pool.submit(lambda: sum(len(response) for response in stream))
    time.sleep(0.1)
    models.close()
    assert toys.closed == ["a stream", "music_generator"]
    with pytest.raises((RequestCancelled, InvalidRequest)):
        reading.result(10)


def test_closing_closes_a_model_that_is_still_being_loaded(slow, models, toys, pool):
    asked = pool.submit(models.call, "music_prompt", CALM)
    assert slow.begun.wait(30)
    closing = pool.submit(models.close)
    with pytest.raises(RequestCancelled):
        asked.result(10)
    assert not closing.done()
    slow.go.set()
    closing.result(10)
    assert toys.closed == ["music_prompt"]


def test_a_graph_that_cannot_be_loaded_is_said(models):
    tokens = {name: np.ones((1, 4), np.int64) for name in ("sentence_ids", "sentence_mask")}
    with pytest.raises(ServerUnavailable, match=r"model\.onnx' cannot be loaded"):
        models.call("sentence_encoder", tokens)


def test_engines_of_tensorrt_need_the_server(repository):
    with (
        LocalModels(repository, "tensorrt") as models,
        pytest.raises(ServerUnavailable, match="emotion_classifier runs on tensorrt"),
    ):
        models.call(
            "emotion_classifier",
            {"valence": np.ones((1, 1), np.float32), "arousal_dominance": np.ones((1, 2), np.float32)},
        )


def test_a_repository_that_is_not_complete_is_refused(tmp_path, repository):
    with pytest.raises(ServerUnavailable, match="no model repository"):
        LocalModels(tmp_path / "nowhere")
    (repository / "valence" / "1" / "model.onnx").unlink()
    with pytest.raises(ServerUnavailable, match="run `attune export`"):
        LocalModels(repository)
    with pytest.raises(InvalidOption, match="no profile 'mars'"):
        LocalModels(repository, "mars")


def test_an_ensemble_is_its_steps():
    asked, context = [], CallContext(request_id="one")

    def call(name, inputs, /, *, context):
        asked.append((name, sorted(inputs), context.request_id))
        return {tensor.name: np.array([len(asked)]) for tensor in MODELS[name].outputs}

    service = create_ensemble(model_config("emotion_recognition", EMBEDDED), call)
    outputs = service.answer({tensor.name: np.zeros(1) for tensor in EMOTION_RECOGNITION.inputs}, context=context)
    encoder = ["attention_mask", "input_ids", "num_samples", "waveform"]
    regressor = ["attention_mask", "audio_state", "num_samples", "text_state"]
    assert asked == [
        ("text_tokenizer", ["transcript"], "one"),
        ("emotion_encoder", encoder, "one"),
        ("valence", regressor, "one"),
        ("arousal_dominance", regressor, "one"),
        ("emotion_classifier", ["arousal_dominance", "valence"], "one"),
    ]
    assert {name: array.tolist() for name, array in outputs.items()} == {"vad": [5], "emotion_probabilities": [5]}


def test_the_clients_methods_ask_local_models(models):
    client = LocalClient(models)
    with pytest.raises(InvalidOption, match="no such mood"):
        client.infer(MODELS["music_prompt"], prompt_for("bad"))
    stream = client.stream(MODELS["music_generator"], music())
    assert next(stream)["seed"].tolist() == [3]
