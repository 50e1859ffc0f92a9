"""The registry of music engines, and what a third one takes: `pytest tests/unit/test_music_engines.py`."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption, ServerUnavailable
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.music import registry
from attune_ensemble.music.musicgen.factory import MusicGenFactory
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.registry import EngineOptions, available_engines, default_engine, engine_metrics
from attune_ensemble.music.service import MusicService

SPEC = MusicSpec(72.0, "dorian", "D", ("piano", "cello"), "mp")

TOY = '''
    """A toy: plays its own setting as a constant, and counts its pieces."""

    import numpy as np


    class ToyFactory:
        metrics = {"toy_pieces": "Pieces that were begun"}
        missing, left_out = None, False

        def __init__(self, options):
            self.level = float(options.settings.get("toy_level", "0.25"))

        def create(self):
            return Toy(self.level)


    class Toy:
        name, sample_rate = "toy", 10

        def __init__(self, level):
            self.level, self.pieces = level, 0

        def metrics(self):
            return {"toy_pieces": float(self.pieces)}

        def generate(self, request, chunk_s):
            self.pieces += 1
            for _ in range(round(request.duration_s / chunk_s)):
                yield np.full((round(chunk_s * 10), 1), self.level, np.float32)

        def close(self):
            self.pieces = -1
'''


def inputs(**more):
    return {"prompt": bytes_tensor("slow"), "music_spec": bytes_tensor(SPEC.to_json())} | more


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """The two that these tests know; a further one in the registry changes nothing here."""
    known = {name: registry.ENGINES[name] for name in ("composer", "musicgen")}
    monkeypatch.setattr(registry, "ENGINES", known)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A third engine: one folder, and one line of the registry."""
    folder = tmp_path / "toy_engine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "factory.py").write_text(textwrap.dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.ENGINES, "toy", "toy_engine.factory:ToyFactory")
    yield
    for module in ("toy_engine", "toy_engine.factory"):
        sys.modules.pop(module, None)


@pytest.mark.usefixtures("toy")
def test_an_engine_is_a_folder_and_a_line_of_the_registry():
    """Its music, its settings and its metrics come through the service."""
    options = EngineOptions({"engine": "toy", "toy_level": "0.5"})
    assert engine_metrics(options) == {"toy_pieces": "Pieces that were begun"}
    service = MusicService(default_engine("toy", options), 1.0, options)
    announcement, *chunks = service.play(inputs(duration_s=np.array([3.0])))
    assert (announcement["engine"], announcement["sample_rate"]) == ("toy", [10])
    np.testing.assert_array_equal(np.concatenate([chunk["music"] for chunk in chunks]), np.full((30, 1), 0.5))
    assert service.metrics() == {"toy_pieces": 1.0}
    made = service._engine("toy").result()
    service.close()
    assert made.pieces == -1


@pytest.mark.usefixtures("toy")
def test_an_engine_is_chosen_by_the_request():
    service = MusicService("composer", 1.0, EngineOptions())
    assert service.metrics() == {}
    announcement, *chunks = service.play(inputs(engine=bytes_tensor("toy"), duration_s=np.array([2.0])))
    assert announcement["engine"] == "toy"
    assert chunks[0]["music"][0, 0] == 0.25
    assert service.metrics() == {"toy_pieces": 1.0}
    with pytest.raises(InvalidOption, match="one of composer, toy; got 'kazoo'"):
        next(service.play(inputs(engine=bytes_tensor("kazoo"))))


def test_engines_are_created_by_name():
    assert registry.create_engine("composer", EngineOptions()).name == "composer"
    with pytest.raises(InvalidOption, match="engine must be one of composer; got 'pianola'"):
        registry.create_engine("pianola", EngineOptions())
    with pytest.raises(InvalidOption, match="engine must be one of composer, musicgen; got 'pianola'"):
        default_engine("pianola", EngineOptions())


@pytest.mark.parametrize("name", registry.ENGINES)
def test_metrics_bear_their_engines_name(name):
    factory = registry._factory(name, EngineOptions())
    assert all(metric.startswith(f"{name}_") for metric in factory.metrics)


# Which engines can play, by what `attune export` placed for the profile


def exported(folder, *files, weights="musicgen.gpu"):
    """The options of a model whose checkpoint folder holds these files."""
    for file in files:
        (folder / weights).mkdir(exist_ok=True)
        (folder / weights / file).touch()
    return EngineOptions({"weights": "musicgen.gpu"}, "cpu", folder)


def test_the_profiles_own_checkpoint_is_played(tmp_path):
    options = exported(tmp_path, "config.json", "model.safetensors")
    assert MusicGenFactory(options).settings.weights == tmp_path / "musicgen.gpu"
    assert available_engines(options) == ("composer", "musicgen")
    assert default_engine("musicgen", options) == "musicgen"
    assert default_engine("composer", options) == "composer"
    assert set(engine_metrics(options)) == set(MusicGenFactory.metrics)


def test_musicgen_reads_its_own_parameters():
    given = MusicGenFactory(
        EngineOptions({"slots": "3", "queue": "5", "numerics": "float32", "chunk_s": "1.0"})
    ).settings
    assert (given.slots, given.queue, given.numerics, given.weights) == (3, 5, "float32", None)
    usual = MusicGenFactory(EngineOptions()).settings
    assert (usual.slots, usual.queue, usual.numerics) == (EngineSettings().slots, EngineSettings().queue, "")


def test_another_profiles_checkpoint_is_not(tmp_path):
    options = exported(tmp_path, "config.json", weights="musicgen")
    assert available_engines(options) == ("composer",)
    assert engine_metrics(options) == {}


def test_the_composer_plays_where_musicgen_was_left_out_on_purpose(tmp_path):
    options = exported(tmp_path, "none")
    assert available_engines(options) == ("composer",)
    assert default_engine("musicgen", options) == "composer"


def test_musicgen_that_was_forgotten_is_refused_when_the_model_loads(tmp_path):
    with pytest.raises(ServerUnavailable, match=r"run `attune export` with this --profile, and --musicgen none"):
        default_engine("musicgen", exported(tmp_path))
