"""Assembling the repository: idempotent, never half-made, and clear about what is missing.

Run: pytest tests/unit/test_export_assemble.py
"""

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from attune_client.protocol.models import MODELS
from attune_export import assemble as assembling
from attune_export.assemble import Part, assemble, place, plan, shipped_artifacts
from attune_export.commands import export
from attune_export.errors import ExportError


@pytest.fixture
def repository(tmp_path):
    """A model repository with empty configurations."""
    for name in MODELS:
        (tmp_path / "repository" / name).mkdir(parents=True)
        (tmp_path / "repository" / name / "config.pbtxt").touch()
    return tmp_path / "repository"


def part(built: list[str], made_from: str = "one", fail: bool = False) -> Part:
    def build(folder: Path) -> float:
        built.append(made_from)
        (folder / "data").mkdir()
        (folder / "data" / "index.bin").write_text(made_from)
        if fail:
            raise KeyboardInterrupt
        (folder / "model.onnx").write_text(made_from)
        return 1e-7

    return Part("valence", {"content": made_from}, (), build)


def contents(repository: Path) -> dict[str, str]:
    folder = repository / "valence" / "1"
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_a_part_is_built_once(repository):
    built: list[str] = []
    first = place(repository, part(built))
    assert first.seconds is not None
    again = place(repository, part(built))
    assert built == ["one"]
    assert again.seconds is None
    assert (again.size_bytes, again.max_deviation) == (first.size_bytes, first.max_deviation) == (6, 1e-7)


def test_it_is_built_again_when_its_inputs_change_or_a_file_is_lost_or_it_is_forced(repository):
    built: list[str] = []
    place(repository, part(built))
    place(repository, part(built, "two"))
    assert contents(repository)["model.onnx"] == contents(repository)["index.bin"] == "two"
    (repository / "valence" / "1" / "data" / "index.bin").unlink()
    place(repository, part(built, "two"))
    place(repository, part(built, "two"), force=True)
    assert built == ["one", "two", "two", "two"]


def test_an_interrupted_build_leaves_what_was_there(repository):
    built: list[str] = []
    place(repository, part(built))
    before = contents(repository)
    with pytest.raises(KeyboardInterrupt):
        place(repository, part(built, "two", fail=True))
    assert contents(repository) == before
    assert place(repository, part(built)).seconds is None, "the old part still counts"
    place(repository, part(built, "two"))
    assert contents(repository)["index.bin"] == "two"


def test_a_spoilt_stamp_means_building_again(repository):
    built: list[str] = []
    place(repository, part(built))
    (repository / "valence" / "1" / "attune-export.json").write_text("{")
    place(repository, part(built))
    assert built == ["one", "one"]


def test_every_part_has_one_line(repository, monkeypatch):
    built: list[str] = []
    monkeypatch.setattr(assembling, "plan", lambda *_, **__: (part(built),))
    screen = StringIO()
    console = Console(file=screen, width=100)
    assemble(repository, console=console)
    assemble(repository, console=console)
    first, second = screen.getvalue().splitlines()
    assert first.split() == ["valence", "0.0", "s", "0.0", "MB", "within", "1.0e-07", "of", "PyTorch"]
    assert second.split()[:4] == ["valence", "up", "to", "date"]


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"is not Attune's model repository: it has no valence/config\.pbtxt"):
        place(tmp_path, part([]))


@pytest.mark.parametrize("profile", ["gpu", "tensorrt"])
def test_the_papers_regressors_have_to_be_given(repository, profile):
    with pytest.raises(ExportError, match=r"HuBERT-base and BERT-base.*--artifacts"):
        plan(repository, profile=profile, artifacts=None)


def test_an_unknown_profile_lists_the_known_ones(repository):
    with pytest.raises(ExportError, match="choose from embedded, gpu, tensorrt"):
        plan(repository, profile="phone", artifacts=None)


def test_artifacts_that_are_no_regressor_are_named(repository, tmp_path):
    with pytest.raises(ExportError, match=r"valence holds no saved regressor.*adapter.safetensors"):
        plan(repository, profile="gpu", artifacts=tmp_path)
    (tmp_path / "valence").mkdir()
    (tmp_path / "valence" / "config.json").write_text(json.dumps({"audio": {"kind": "ear"}}))
    with pytest.raises(ExportError, match="no weights are known for the audio tower 'ear'"):
        plan(repository, profile="gpu", artifacts=tmp_path)


def test_an_emotion_map_of_ones_own_takes_the_place_of_the_shipped_one(repository, tmp_path):
    with pytest.raises(ExportError, match=r"holds no emotion map; `attune train emotion-map` trains one"):
        plan(repository, profile="embedded", artifacts=None, emotion_map=tmp_path)
    shutil.copytree(shipped_artifacts() / "emotion_map", tmp_path / "own")
    (tmp_path / "own" / "metrics.json").write_text("{}")
    parts = [
        {part.model: part for part in plan(repository, profile="embedded", artifacts=None, emotion_map=folder)}
        for folder in (None, tmp_path / "own")
    ]
    changed = {name for name in parts[0] if parts[0][name].fingerprint() != parts[1][name].fingerprint()}
    assert changed == {"emotion_classifier"}


def test_musicgen_is_placed_where_it_is_asked_for(repository, tmp_path):
    """A folder of one's own on a CPU; on a GPU the small one unless another is named."""

    def planned(**options):
        parts = plan(repository, profile="embedded", artifacts=None, **options)
        return [part for part in parts if part.model == "music_generator"]

    assert planned() == []
    (medium,) = planned(musicgen="musicgen-medium")
    assert medium.weights == ("musicgen-medium",)
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(ExportError, match=r"own is neither a folder .* nor one of musicgen-small, musicgen-medium"):
        planned(musicgen=str(own))
    (own / "config.json").write_text("{}")
    (part,) = planned(musicgen=str(own))
    before = part.fingerprint()
    placed = place(repository, part)
    assert (repository / "music_generator/1/musicgen/config.json").read_text() == "{}"
    assert placed.size_bytes == 2
    (own / "config.json").write_text('{"changed": 1}')
    (part,) = planned(musicgen=str(own))
    assert part.fingerprint() != before


def test_the_command_reports_errors_in_one_line(repository):
    outcome = CliRunner().invoke(export, ["--repository", str(repository), "--profile", "gpu"])
    assert outcome.exit_code == 1
    assert outcome.output.startswith("Error: the gpu profile serves regressors with the paper's towers")


def test_embeddings_do_not_depend_on_the_batch(repository):
    """The index is built with the served encoder; skipped where `attune export` has not run."""
    from attune_export.embedding import SentenceEmbedder

    root = Path(__file__).parents[2] / "model_repository"
    model, tokenizer = root / "sentence_encoder/1/model.onnx", root / "text_tokenizer/1/tokenizer.json"
    if not model.is_file() or not tokenizer.is_file():
        pytest.skip("run `attune export` first")
    embed = SentenceEmbedder(model, tokenizer)
    long, short = "a slow and tender melody for strings " * 30, "joy"
    together = embed([long, short])
    assert together.shape == (2, 384)
    assert together[1] == pytest.approx(embed([short])[0], abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
