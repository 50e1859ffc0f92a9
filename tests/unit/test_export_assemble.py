"""Assembling the repository: idempotent, never half-made, one profile's never another's, clear about what is missing.

Run: pytest tests/unit/test_export_assemble.py
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file, save_file

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.models import EMOTION_CLASSIFIER, MODELS
from attune_client.protocol.profiles import EMBEDDED, GPU, PROFILES, TENSORRT, Profile, exported_name, plain_name
from attune_ensemble.music.engine import EngineOptions
from attune_ensemble.music.musicgen.factory import MusicGenFactory
from attune_ensemble.serving.repository import check_repository
from attune_export import assemble as assembling
from attune_export.assemble import assemble, plan
from attune_export.commands import export
from attune_export.errors import ExportError
from attune_export.parts import Part, shipped_artifacts
from attune_export.placing import place
from attune_export.repository_config import write_repository
from attune_weights import WeightsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    """A model repository of configurations alone, as a clone has it."""
    write_repository(tmp_path / "repository")
    for name in MODELS:
        (tmp_path / "repository" / name / "1").mkdir()
        if (ROOT / "model_repository" / name / "1" / "model.py").is_file():
            (tmp_path / "repository" / name / "1" / "model.py").touch()
    return tmp_path / "repository"


def part(built: list[str], made_from: str = "one", fail: bool = False, model: str = "valence", **more) -> Part:
    def build(folder: Path) -> float:
        built.append(made_from)
        (folder / "data").mkdir()
        (folder / "data" / "index.bin").write_text(made_from)
        if fail:
            raise KeyboardInterrupt
        (folder / "model.onnx").write_text(made_from)
        return 1e-7

    return Part(model, {"content": made_from}, (), build, **more)


def contents(repository: Path, model: str = "valence") -> dict[str, str]:
    folder = repository / model / "1"
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
    (repository / "valence" / "1" / "model.onnx").write_text("t")  # cut short
    place(repository, part(built, "two"))
    assert built == ["one", "two", "two", "two", "two"]


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


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_every_profile_has_the_regressors_that_ship_unless_others_are_given(repository, profile, tmp_path):
    """A profile says where models run; which models they are is said by the artifacts."""
    shipped = {part.model: part for part in plan(repository, profile=profile, artifacts=None)}
    assert shipped["valence"].weights == ("whisper-base-ct2", "all-mpnet-base-v2")
    embedded = {part.model: part for part in plan(repository, profile=EMBEDDED, artifacts=None)}
    for model in ("emotion_encoder", "valence", "arousal_dominance", "emotion_classifier", "sentence_encoder"):
        assert shipped[model].fingerprint() == embedded[model].fingerprint(), model
    for model in ("valence", "arousal_dominance"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text(json.dumps({"audio": {"kind": "hubert"}, "text": {}}))
    given = {part.model: part for part in plan(repository, profile=profile, artifacts=tmp_path)}
    assert given["valence"].weights == ("hubert-base-ls960", "bert-base-uncased")
    # BERT's vocabulary is MiniLM's too, whose tokenizer is pinned by its own digest.
    assert given["text_tokenizer"].weights == ("all-minilm-l6-v2",)


def save_configs(folder, **text_kinds):
    """Write what the plan reads of saved regressors: the configuration, with a text tower of the kind."""
    for model, kind in text_kinds.items():
        (folder / model).mkdir()
        towers = {"audio": {"kind": "whisper"}, "text": {"kind": kind}}
        (folder / model / "config.json").write_text(json.dumps(towers))


def test_the_served_tokenizer_is_that_of_the_regressors_and_the_sentence_encoder_keeps_its_own(
    repository, tmp_path, monkeypatch
):
    save_configs(tmp_path, valence="mpnet", arousal_dominance="mpnet")
    parts = {part.model: part for part in plan(repository, profile=EMBEDDED, artifacts=tmp_path)}
    for model in ("emotion_encoder", "valence", "arousal_dominance"):
        assert parts[model].weights == ("whisper-base-ct2", "all-mpnet-base-v2")
    assert parts["text_tokenizer"].weights == ("all-mpnet-base-v2", "all-minilm-l6-v2")
    for name in parts["text_tokenizer"].weights:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(name)
    monkeypatch.setattr("attune_export.models.text_tokenizer.fetch", lambda name: tmp_path / name)
    place(repository, parts["text_tokenizer"])
    folder = repository / "text_tokenizer" / "1" / "tokenizers"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "regressors.json": "all-mpnet-base-v2",
        "sentences.json": "all-minilm-l6-v2",
    }
    (tmp_path / "bert").mkdir()
    save_configs(tmp_path / "bert", valence="bert", arousal_dominance="bert")
    others = {part.model: part for part in plan(repository, profile=EMBEDDED, artifacts=tmp_path / "bert")}
    for model in ("sentence_encoder", "music_prompt"):
        assert parts[model].fingerprint() == others[model].fingerprint(), "whatever the regressors read with"
    assert parts["text_tokenizer"].fingerprint() != others["text_tokenizer"].fingerprint()


def test_regressors_of_two_vocabularies_are_refused(repository, tmp_path):
    save_configs(tmp_path, valence="mpnet", arousal_dominance="bert")
    with pytest.raises(ExportError, match="valence has a text tower of kind mpnet, arousal_dominance one of kind bert"):
        plan(repository, profile=EMBEDDED, artifacts=tmp_path)


def test_an_unknown_profile_lists_the_known_ones(repository):
    outcome = CliRunner().invoke(export, ["--repository", str(repository), "--profile", "phone"])
    assert outcome.exit_code == 2
    for name in ("embedded", "gpu", "tensorrt"):
        assert name in outcome.output


def test_artifacts_that_are_no_regressor_are_named(repository, tmp_path):
    with pytest.raises(ExportError, match=r"valence holds no saved regressor.*adapter.safetensors"):
        plan(repository, profile=GPU, artifacts=tmp_path)
    (tmp_path / "valence").mkdir()
    (tmp_path / "valence" / "config.json").write_text(json.dumps({"audio": {"kind": "ear"}, "text": {"kind": "bert"}}))
    with pytest.raises(ExportError, match="no weights are known for the towers 'ear' and 'bert'"):
        plan(repository, profile=GPU, artifacts=tmp_path)


def test_an_emotion_map_of_ones_own_takes_the_place_of_the_shipped_one(repository, tmp_path):
    with pytest.raises(ExportError, match=r"holds no emotion map; `attune train emotion-map` trains one"):
        plan(repository, profile=EMBEDDED, artifacts=None, emotion_map=tmp_path)
    shutil.copytree(shipped_artifacts() / "emotion_map", tmp_path / "own")
    (tmp_path / "own" / "metrics.json").write_text("{}")
    parts = [
        {part.model: part for part in plan(repository, profile=EMBEDDED, artifacts=None, emotion_map=folder)}
        for folder in (None, tmp_path / "own")
    ]
    changed = {name for name in parts[0] if parts[0][name].fingerprint() != parts[1][name].fingerprint()}
    assert changed == {"emotion_classifier"}


def music_part(repository, profile=EMBEDDED, **options) -> Part:
    return next(
        part for part in plan(repository, profile=profile, artifacts=None, **options) if part.model == "music_generator"
    )


def test_musicgen_is_placed_where_it_is_asked_for(repository, tmp_path):
    """A folder of one's own on a CPU; on a GPU the small one unless another is named."""
    assert music_part(repository).weights == ()
    assert music_part(repository, GPU).weights == ("musicgen-small",)
    assert music_part(repository, GPU, musicgen="none").weights == ()
    assert music_part(repository, musicgen="musicgen-medium").weights == ("musicgen-medium",)
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(ExportError, match=r"own is neither a folder .* nor one of musicgen-small, musicgen-medium"):
        music_part(repository, musicgen=str(own))
    (own / "config.json").write_text("{}")
    part = music_part(repository, musicgen=str(own))
    placed = place(repository, part)
    assert (repository / "music_generator/1/musicgen/config.json").read_text() == "{}"
    assert MusicGenFactory(EngineOptions(folder=repository / "music_generator" / "1")).missing is None
    assert placed.size_bytes == 2
    (own / "config.json").write_text('{"changed": 1}')
    assert music_part(repository, musicgen=str(own)).fingerprint() != part.fingerprint()


def test_an_export_without_musicgen_takes_away_that_of_a_former_one(repository, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    place(repository, music_part(repository, musicgen=str(tmp_path / "own")))
    place(repository, music_part(repository))
    folder = repository / "music_generator" / "1" / "musicgen"
    assert [path.name for path in folder.iterdir()] == ["none"]
    assert MusicGenFactory(EngineOptions(folder=folder.parent)).left_out


# Profiles side by side


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
@pytest.mark.parametrize("name", ["model.onnx", "musicgen", "labels.txt", "whisper", "tokenizers", "knowledge"])
def test_names_can_be_told_back(name, profile):
    assert plain_name(exported_name(name, profile), profile) == name


def test_no_profile_is_served_with_what_was_exported_for_another(repository):
    built: list[str] = []
    place(repository, part(built, "cpu's"))
    place(repository, part(built, "gpu's"), profile=GPU)
    found = contents(repository)
    assert (found["model.onnx"], found["model.gpu.onnx"]) == ("cpu's", "gpu's")
    folder = repository / "valence" / "1"
    assert (folder / "data" / "index.bin").read_text() == "cpu's"
    assert (folder / "data.gpu" / "index.bin").read_text() == "gpu's"
    for profile, made_from in ((EMBEDDED, "cpu's"), (GPU, "gpu's")):
        assert place(repository, part(built, made_from), profile=profile).seconds is None


def test_what_another_profile_has_is_linked_and_not_built_again(repository):
    built: list[str] = []
    first = place(repository, part(built))
    second = place(repository, part(built), profile=GPU)
    assert built == ["one"]
    assert (second.size_bytes, second.max_deviation) == (first.size_bytes, first.max_deviation)
    folder = repository / "valence" / "1"
    assert (folder / "model.gpu.onnx").samefile(folder / "model.onnx")
    place(repository, part(built, "two"))
    assert contents(repository)["model.gpu.onnx"] == "one", "a replaced file is another file"
    place(repository, part(built), profile=GPU, force=True)
    assert built == ["one", "two", "one"]


def test_files_that_a_part_no_longer_has_go(repository):
    def first(folder):
        (folder / "model.onnx").touch()
        (folder / "extra.bin").touch()

    place(repository, Part("valence", {"content": "1"}, (), first))
    place(repository, part([]))
    assert "extra.bin" not in contents(repository)


def test_a_new_export_leaves_no_engine_of_the_former_graph(repository):
    folder = repository / "emotion_classifier" / "1"

    def export_one(made_from):
        place(
            repository,
            part([], made_from, model="emotion_classifier", engine=EMOTION_CLASSIFIER),
            profile=TENSORRT,
        )

    export_one("one")
    first = (folder / "build_engine.sh").read_text()
    assert os.access(folder / "build_engine.sh", os.X_OK)
    (folder / "model.plan").touch()
    export_one("one")
    assert (folder / "model.plan").exists(), "the same graph keeps its engine"
    export_one("two")
    assert not (folder / "model.plan").exists()
    assert (folder / "build_engine.sh").read_text() != first
    (folder / "model.plan").touch()
    (folder / "build_engine.sh").write_text("a script of another version")
    export_one("two")
    assert not (folder / "model.plan").exists()


@pytest.fixture
def small_plan(monkeypatch):
    """Parts that are built at once, for every file that any profile's configuration asks for; `made_from` decides."""

    class Plan:
        made_from = "one"
        fails: str | None = None
        order: tuple[str, ...] = (
            "emotion_encoder",
            "valence",
            "arousal_dominance",
            "emotion_classifier",
            "sentence_encoder",
        )

        def __call__(self, repository, *, profile, **_):
            return tuple(
                part(
                    [],
                    self.made_from,
                    fail=model == self.fails,
                    model=model,
                    engine=EMOTION_CLASSIFIER if profile == TENSORRT and model != "sentence_encoder" else None,
                )
                for model in self.order
            )

    made = Plan()
    monkeypatch.setattr(assembling, "plan", made)
    return made


def quiet() -> Console:
    return Console(file=StringIO())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_what_the_configurations_ask_for_is_what_is_exported(repository, small_plan, profile):
    with pytest.raises(ServerUnavailable, match="run `attune export"):
        check_repository(repository, profile=profile)
    assemble(repository, profile=profile, console=quiet())
    if profile is TENSORRT:
        with pytest.raises(ServerUnavailable, match=r"(?s)engines have to be built.*valence/1/build_engine\.sh"):
            check_repository(repository, profile=profile)
        for model in ("emotion_encoder", "valence", "arousal_dominance", "emotion_classifier"):
            (repository / model / "1" / "model.plan").touch()
    check_repository(repository, profile=profile)
    others = [other for other in PROFILES.values() if other is not profile]
    for other in others:
        with pytest.raises(ServerUnavailable, match="attune export"):
            check_repository(repository, profile=other)


def test_a_broken_off_export_is_not_served_and_says_what_puts_it_right(repository, small_plan):
    assemble(repository, console=quiet())
    small_plan.made_from, small_plan.fails = "two", "arousal_dominance"
    with pytest.raises(KeyboardInterrupt):
        assemble(repository, console=quiet(), command="attune export --artifacts mine")
    with pytest.raises(ServerUnavailable, match=r"did not finish .* run `attune export --artifacts mine` again"):
        check_repository(repository)
    small_plan.fails = None
    assemble(repository, console=quiet())
    check_repository(repository)


def test_an_export_that_fails_before_it_changed_anything_leaves_what_is_served(repository, small_plan):
    assemble(repository, console=quiet())
    small_plan.made_from, small_plan.fails = "two", "emotion_encoder"
    with pytest.raises(KeyboardInterrupt):
        assemble(repository, console=quiet())
    check_repository(repository)


def test_what_another_export_replaced_is_refused(repository, small_plan):
    """What profiles share, exported later by another version of the code."""
    assemble(repository, console=quiet())
    place(repository, part([], "another version", model="valence"))
    with pytest.raises(ServerUnavailable, match=r"valence was replaced by another export .* run `attune export` again"):
        check_repository(repository)
    check_repository(repository, models=("sentence_encoder",))


def test_a_lost_file_is_named(repository, small_plan):
    assemble(repository, console=quiet())
    (repository / "valence" / "1" / "data" / "index.bin").unlink()
    with pytest.raises(ServerUnavailable, match=r"valence/1/data/index\.bin is missing: run `attune export` again"):
        check_repository(repository)


def test_a_file_that_was_cut_short_is_named(repository, small_plan):
    assemble(repository, console=quiet())
    (repository / "valence" / "1" / "data" / "index.bin").write_bytes(b"")
    with pytest.raises(ServerUnavailable, match=r"index\.bin is damaged: it has 0 of \d+ bytes: run `attune export`"):
        check_repository(repository)


def test_an_export_of_a_version_without_records_is_refused(repository, small_plan):
    assemble(repository, console=quiet())
    (repository / "attune-export.json").unlink()
    with pytest.raises(ServerUnavailable, match="nothing has been exported for the embedded profile: run `attune"):
        check_repository(repository)


def test_models_that_know_other_emotions_are_refused(repository, small_plan):
    assemble(repository, console=quiet())
    record = json.loads((repository / "attune-export.json").read_text())
    record["labels"].reverse()
    (repository / "attune-export.json").write_text(json.dumps(record))
    with pytest.raises(ServerUnavailable, match="other emotions than the knowledge base has: run `attune export`"):
        check_repository(repository)


def test_a_profile_without_configurations_is_refused(repository):
    """The server itself would serve `embedded` in its place, and say nothing."""
    with pytest.raises(ServerUnavailable, match=r"there is no profile 'new': .*configs/new\.pbtxt is missing"):
        check_repository(repository, profile=Profile("new", "a test", inherits=GPU))


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ("gpu", "the model repository is not complete: run `attune export --profile gpu`"),
        ("gpus", "there is no profile 'gpus'; there are embedded, gpu, tensorrt"),
    ],
)
def test_the_check_in_front_of_a_server_ends_with_the_reason(repository, profile, reason):
    command = [sys.executable, "-m", "attune_ensemble.serving.repository", str(repository), profile]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"refused: {reason}")
    assert "Traceback" not in done.stderr


def test_a_second_export_waits_for_the_first(repository, monkeypatch):
    """Two at once, of different artifacts, would leave a mixture."""
    running, overlaps = [], []

    def slow(made_from):
        def build(folder):
            running.append(made_from)
            time.sleep(0.05)
            overlaps.append(len(running) > 1)
            (folder / "model.onnx").write_text(made_from)
            running.remove(made_from)

        return tuple(Part(model, {"content": made_from}, (), build) for model in ("valence", "arousal_dominance"))

    monkeypatch.setattr(assembling, "plan", lambda _, *, musicgen, **__: slow(musicgen))
    screen = StringIO()
    threads = [
        threading.Thread(
            target=assemble, args=(repository,), kwargs={"musicgen": name, "console": Console(file=screen)}
        )
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(overlaps)
    assert "another export is at work in this repository" in screen.getvalue()
    pair = {contents(repository, model)["model.onnx"] for model in ("valence", "arousal_dominance")}
    assert len(pair) == 1


# MusicGen out of reach


def test_without_musicgens_weights_everything_else_is_placed_and_the_ways_out_are_named(repository, monkeypatch):
    music = Part("music_generator", {"content": "small"}, ("musicgen-small",), lambda folder: None)
    monkeypatch.setattr(assembling, "plan", lambda *_, **__: (part([]), music))

    def fetch(name):
        raise WeightsError(f"cannot fetch the weights '{name}'")

    monkeypatch.setattr(assembling, "fetch", fetch)
    with pytest.raises(WeightsError, match="cannot fetch the weights 'musicgen-small'") as raised:
        assemble(repository, profile=GPU, console=quiet(), command="attune export --profile gpu")
    for words in ("All other models were placed", "`attune export --profile gpu` again", "--musicgen none"):
        assert words in str(raised.value)
    assert contents(repository)["model.gpu.onnx"] == "one"
    for model in ("emotion_encoder", "arousal_dominance", "emotion_classifier", "sentence_encoder"):
        (repository / model / "1" / "model.gpu.onnx").touch()
    with pytest.raises(ServerUnavailable, match="music_generator is missing; --musicgen none does without"):
        check_repository(repository, profile=GPU)


def test_without_any_other_weights_nothing_is_touched(repository, monkeypatch):
    needy = Part("sentence_encoder", {"content": "x"}, ("all-minilm-l6-v2",), lambda folder: None)
    monkeypatch.setattr(assembling, "plan", lambda *_, **__: (part([]), needy))

    def fetch(name):
        raise WeightsError(f"cannot fetch the weights '{name}'")

    monkeypatch.setattr(assembling, "fetch", fetch)
    with pytest.raises(WeightsError, match="all-minilm-l6-v2"):
        assemble(repository, console=quiet())
    assert "model.onnx" not in contents(repository)


# Artifacts that are no numbers


def test_artifacts_that_are_no_numbers_are_refused(repository, tmp_path):
    shutil.copytree(shipped_artifacts() / "emotion_map", tmp_path / "own")
    weights = load_file(tmp_path / "own" / "cnn.safetensors")
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "own" / "cnn.safetensors")
    parts = plan(repository, profile=EMBEDDED, artifacts=None, emotion_map=tmp_path / "own")
    with pytest.raises(ExportError, match=r"emotion_classifier: the weight '.*' holds values that are not finite"):
        place(repository, next(part for part in parts if part.model == "emotion_classifier"))
    assert "model.onnx" not in contents(repository, "emotion_classifier")


def test_the_command_reports_errors_in_one_line(repository, tmp_path):
    outcome = CliRunner().invoke(export, ["--repository", str(repository), "--artifacts", str(tmp_path)])
    assert outcome.exit_code == 1
    assert outcome.output.startswith("Error: ")
    assert "holds no saved regressor" in outcome.output


def test_a_repository_that_cannot_be_written_is_reported_in_one_line(repository, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(repository))

    monkeypatch.setattr("attune_export.commands.assemble", refuse)
    outcome = CliRunner().invoke(export, ["--repository", str(repository)])
    assert outcome.output == f"Error: {repository}: Permission denied\n"


def test_embeddings_do_not_depend_on_the_batch(repository):
    """The index is built with the served encoder; skipped where `attune export` has not run."""
    from attune_export.embedding import SentenceEmbedder

    root = ROOT / "model_repository"
    model, tokenizer = root / "sentence_encoder/1/model.onnx", root / "text_tokenizer/1/tokenizers/sentences.json"
    if not model.is_file() or not tokenizer.is_file():
        pytest.skip("run `attune export` first")
    embed = SentenceEmbedder(model, tokenizer)
    long, short = "a slow and tender melody for strings " * 30, "joy"
    together = embed([long, short])
    assert together.shape == (2, 384)
    assert together[1] == pytest.approx(embed([short])[0], abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
