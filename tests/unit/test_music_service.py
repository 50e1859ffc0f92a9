"""The music service and the therapy stream, with a stand-in engine: `pytest tests/unit/test_music_service.py`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption, InvalidRequest, ServerUnavailable
from attune_ensemble import pipeline
from attune_ensemble.music import service as service_module
from attune_ensemble.music.engines import EngineOptions, available_engines, default_engine
from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.music.service import MusicService, read_request
from attune_ensemble.music.spec import MusicSpec
from attune_ensemble.tensors import bytes_tensor, text_of

SPEC = MusicSpec(72.0, "dorian", "D", ("piano", "cello"), "mp")


class CountingEngine:
    """Plays one frame a chunk, and counts how far it came."""

    name, sample_rate = "counter", 8_000

    def __init__(self):
        self.made = 0
        self.request = None

    def generate(self, request, chunk_s):
        self.request = request
        for _ in range(round(request.duration_s / chunk_s)):
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
    assert next(responses) == {"engine": "counter", "sample_rate": [8_000]}
    assert engine.made == 0
    assert [response["music"][0, 0] for response in responses] == [1, 2, 3]


def test_closing_stops_the_engine(engine):
    responses = MusicService("counter", 1.0, EngineOptions()).play(inputs())
    next(responses), next(responses)
    responses.close()
    assert engine.made == 1


def test_defaults_and_options_reach_the_engine(engine):
    service = MusicService("counter", 1.0, EngineOptions())
    for options, duration_s, seed in (({}, 30.0, 0), ({"seed": np.array([7])}, 30.0, 7)):
        list(service.play(inputs(**options)))
        assert (engine.request.duration_s, engine.request.seed) == (duration_s, seed)
        assert (engine.request.spec, engine.request.prompt) == (SPEC, "slow")


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
        read_request(inputs(prompt=np.array([b"\xff\xfe"], dtype=np.object_)))


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


def test_therapy_tells_everything_first_and_closes_the_music(monkeypatch):
    monkeypatch.setattr(pipeline, "recognise_speech", lambda audio, labels, call: {"emotion": audio, "vad": audio})
    monkeypatch.setattr(
        pipeline, "write_prompt", lambda emotion, vad, call: {"prompt": emotion, "music_spec": vad, "similarity": vad}
    )
    closed, asked = [], {}

    def call_stream(name, sent):
        asked[name] = sent
        try:
            yield {"engine": bytes_tensor("counter")}
            yield {"music": np.zeros((1, 2))}
            yield {"music": np.ones((1, 2))}
        finally:
            closed.append(name)

    audio = bytes_tensor("a recording")
    responses = pipeline.play_therapy({"audio": audio, "seed": np.array([3])}, [], None, call_stream)
    first = next(responses)
    assert text_of(first["engine"]) == "counter"
    assert set(first) == {"emotion", "vad", "prompt", "music_spec", "similarity", "engine"}
    assert set(asked["music_generator"]) == {"prompt", "music_spec", "seed"}
    assert set(next(responses)) == {"music"}
    responses.close()
    assert closed == ["music_generator"]


def test_settings_of_sampling_are_read_and_the_composer_refuses_them():
    request = read_request(inputs(top_k=np.array([5], np.int32), guidance=np.array([2], np.float32)))
    assert request.sampling == SamplingSettings(top_k=5, guidance=2.0)
    assert read_request(inputs()).sampling is None
    responses = MusicService("composer", 1.0, EngineOptions()).play(inputs(top_k=np.array([5], np.int32)))
    next(responses)
    with pytest.raises(InvalidOption, match="are for musicgen"):
        next(responses)


def test_silence_of_an_engine_is_not_sent(monkeypatch):
    class Waiting(CountingEngine):
        def generate(self, request, chunk_s):
            yield np.zeros((0, 1), np.float32)
            yield np.ones((4, 1), np.float32)

        def metrics(self):
            return {"waits": 1.0}

    monkeypatch.setattr(service_module, "create_engine", lambda *_, **__: Waiting())
    service = MusicService("waiting", 1.0, EngineOptions())
    _announcement, nothing, chunk = service.play(inputs())
    assert nothing == {}
    assert chunk["music"].shape == (4, 1)
    assert service.metrics() == {"waits": 1.0}


# Which engines can play, by what `attune export` placed for the profile


def exported(folder, *files, weights="musicgen.gpu"):
    """The options of a model whose checkpoint folder holds these files."""
    for file in files:
        (folder / weights).mkdir(exist_ok=True)
        (folder / weights / file).touch()
    return EngineOptions.of({"weights": "musicgen.gpu"}, "cpu", folder)


def test_the_profiles_own_checkpoint_is_played(tmp_path):
    options = exported(tmp_path, "config.json", "model.safetensors")
    assert options.musicgen == tmp_path / "musicgen.gpu"
    assert available_engines(options) == ("composer", "musicgen")
    assert default_engine("musicgen", options) == "musicgen"
    assert default_engine("composer", options) == "composer"


def test_another_profiles_checkpoint_is_not(tmp_path):
    options = exported(tmp_path, "config.json", weights="musicgen")
    assert available_engines(options) == ("composer",)


def test_the_composer_plays_where_musicgen_was_left_out_on_purpose(tmp_path):
    options = exported(tmp_path, "none")
    assert available_engines(options) == ("composer",)
    assert default_engine("musicgen", options) == "composer"


def test_musicgen_that_was_forgotten_is_refused_when_the_model_loads(tmp_path):
    with pytest.raises(ServerUnavailable, match=r"run `attune export` with this --profile, and --musicgen none"):
        default_engine("musicgen", exported(tmp_path))
