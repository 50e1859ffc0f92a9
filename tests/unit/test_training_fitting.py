"""Training from recipe to run folder, on a miniature: it learns, resumes exactly after a kill, and reports errors.

.venv/bin/pytest tests/unit/test_training_fitting.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from attune_training.commands import train
from attune_training.data.batches import Example
from attune_training.fitting.epochs import LoadedCorpus, draw, draw_epoch, with_foreign_words
from attune_training.fitting.settings import CorpusSettings, Recipe, SettingsError, load_recipe, recipe_names
from attune_training.pretrained import load
from tests.miniature import write_manifest

RECIPE = {
    "model": {"towers": "tiny"},
    "corpora": {"mini": {"kind": "manifest", "split": "given", "without_voice": 0.25, "without_words": 0.25}},
    "optimisation": {"epochs": 3, "learning_rate": 3e-3, "batch_size": 4, "words_batch_size": 4},
}

JOINT = {"towers": "tiny", "architecture": "cross-modal-joint"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("mini"))


def write_recipe(path, **changes):
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def arguments(model, recipe, manifest, output, *more):
    return [model, "--recipe", str(recipe), "--data", f"mini={manifest}", "--output", str(output), "--json", *more]


def example(value, words="a", spoken=True, samples=800):
    waveform = np.full(samples, 100, np.int16) if spoken else None
    return Example(waveform, words, np.full(3, value, np.float32))


@pytest.mark.parametrize("model", ["valence", "arousal-dominance", "joint"])
def test_a_run_leaves_everything_in_its_folder(model, manifest, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", model=JOINT if model == "joint" else RECIPE["model"])
    result = CliRunner().invoke(train, arguments(model, recipe, manifest, tmp_path / "run"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    dimensions = {"valence": 1, "arousal-dominance": 2, "joint": 3}[model]
    assert len(report["scores"]["mini"]["dimensions"]) == dimensions
    assert report["scores"]["mini"]["dimensions"].popitem()[1]["count"] == 10
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.json", "model", "logs", "checkpoints", "curves.png"} <= found
    assert "predicted_mini.png" in found
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["sizes"]["mini"] == {"train": 30, "validation": 10, "test": 10}
    assert len(run["identity"]["data"]["mini"]) == 64
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).optimisation.epochs == 3
    assert load(tmp_path / "run" / "model").model.config.output_names


def test_training_moves_predictions_towards_the_labels(manifest, tmp_path):
    optimisation = {**RECIPE["optimisation"], "epochs": 25, "learning_rate": 1e-2, "patience": 25}
    recipe = write_recipe(tmp_path / "recipe.yaml", model=JOINT, optimisation=optimisation)
    result = CliRunner().invoke(train, arguments("joint", recipe, manifest, tmp_path / "run"))
    assert result.exit_code == 0, result.output
    dimensions = json.loads(result.stdout.splitlines()[-1])["scores"]["mini"]["dimensions"]
    assert all(item["pcc"] > 0.7 for item in dimensions.values())


def run_process(arguments):
    command = [str(Path(sys.executable).with_name("attune")), "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(manifest, tmp_path):
    optimisation = {**RECIPE["optimisation"], "epochs": 30, "patience": 30}
    recipe = write_recipe(tmp_path / "recipe.yaml", optimisation=optimisation)
    whole = CliRunner().invoke(train, arguments("valence", recipe, manifest, tmp_path / "whole"))
    assert whole.exit_code == 0, whole.output

    broken = tmp_path / "broken"
    first = run_process(arguments("valence", recipe, manifest, broken))
    deadline = time.monotonic() + 120
    while not (broken / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (broken / "metrics.json").exists()

    second = CliRunner().invoke(train, arguments("valence", recipe, manifest, broken))
    assert second.exit_code == 0, second.output
    assert "epoch 30/30" in second.stderr, whole.stderr
    assert "epoch 1/30" not in second.stderr
    expected = load_file(tmp_path / "whole" / "model" / "head.safetensors")
    found = load_file(broken / "model" / "head.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_folder_of_another_run_is_refused(manifest, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml")
    assert CliRunner().invoke(train, arguments("valence", recipe, manifest, tmp_path / "run")).exit_code == 0
    other = CliRunner().invoke(train, arguments("valence", recipe, manifest, tmp_path / "run", "--epochs", "4"))
    assert other.exit_code == 1
    assert "holds a run with other recipe" in other.stderr
    assert "Traceback" not in other.output


def test_valence_starts_from_a_joint_run(manifest, tmp_path):
    recipe, start = write_recipe(tmp_path / "recipe.yaml"), write_recipe(tmp_path / "joint.yaml", model=JOINT)
    assert CliRunner().invoke(train, arguments("joint", start, manifest, tmp_path / "joint")).exit_code == 0
    start = ("--start-from", str(tmp_path / "joint" / "model"))
    result = CliRunner().invoke(train, arguments("valence", recipe, manifest, tmp_path / "run", *start))
    assert result.exit_code == 0, result.output
    assert "0 fresh" in result.stderr


@pytest.mark.parametrize(
    ("rate", "stays"),
    [
        ("voice_rate", {"audio_tower", "audio_layers", "audio_norm", "audio_projection"}),
        ("words_rate", {"text_tower", "text_projection"}),
    ],
)
def test_a_stream_with_learning_rate_zero_is_frozen(manifest, tmp_path, rate, stays):
    joint = write_recipe(tmp_path / "joint.yaml", model=JOINT)
    CliRunner().invoke(train, arguments("joint", joint, manifest, tmp_path / "joint"))
    recipe = write_recipe(tmp_path / "recipe.yaml", optimisation={**RECIPE["optimisation"], rate: 0.0})
    start = tmp_path / "joint" / "model"
    result = CliRunner().invoke(
        train, arguments("valence", recipe, manifest, tmp_path / "v", "--start-from", str(start))
    )
    assert result.exit_code == 0, result.output
    weights = ("adapter.safetensors", "head.safetensors")
    before, after = ({} for _ in range(2))
    for stored, folder in ((before, start), (after, tmp_path / "v" / "model")):
        for file in weights:
            stored.update(load_file(folder / file))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in after} - {name.split(".")[0] for name in moved} == stays


def test_the_text_stream_may_come_from_another_model(manifest, tmp_path):
    joint = write_recipe(tmp_path / "joint.yaml", model=JOINT)
    for name, seed in (("voice", "1"), ("words", "2")):
        CliRunner().invoke(train, arguments("joint", joint, manifest, tmp_path / name, "--seed", seed))
    resting = {**RECIPE["optimisation"], "epochs": 1, "voice_rate": 0.0, "words_rate": 0.0}
    recipe = write_recipe(tmp_path / "recipe.yaml", optimisation=resting)
    models = [tmp_path / name / "model" for name in ("voice", "words")]
    starts = ("--start-from", str(models[0]), "--words-from", str(models[1]))
    result = CliRunner().invoke(train, arguments("valence", recipe, manifest, tmp_path / "both", *starts))
    assert result.exit_code == 0, result.output
    voice, words, both = (load_file(folder / "head.safetensors") for folder in (*models, tmp_path / "both" / "model"))
    assert torch.equal(both["audio_projection.weight"], voice["audio_projection.weight"])
    assert torch.equal(both["text_projection.weight"], words["text_projection.weight"])
    assert not torch.equal(voice["text_projection.weight"], words["text_projection.weight"])


def test_an_error_is_reported_in_one_line(manifest, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml")
    unknown = CliRunner().invoke(train, ["valence", "--data", "nothing=x", "--output", str(tmp_path / "run")])
    assert unknown.exit_code == 2
    assert "the kinds are iemocap" in unknown.stderr
    unnamed = CliRunner().invoke(train, ["valence", "--data", "x", "--output", str(tmp_path / "run")])
    assert "NAME=PATH" in unnamed.stderr
    rows = manifest.with_name("bad.csv")
    rows.write_text(manifest.read_text().replace("0.wav", "missing.wav", 1))
    bad = CliRunner().invoke(train, arguments("valence", recipe, rows, tmp_path / "run"))
    assert bad.exit_code == 1
    assert "2: missing file" in bad.stderr or "line 2" in bad.stderr
    assert "--bad-rows skip" in bad.stderr
    skipped = CliRunner().invoke(train, arguments("valence", recipe, rows, tmp_path / "run", "--bad-rows", "skip"))
    assert skipped.exit_code == 0, skipped.output


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_that_ship_are_read(name):
    recipe = load_recipe(name)
    assert recipe.optimisation.epochs > 0
    assert load_recipe_text(recipe) == recipe


def load_recipe_text(recipe, tmp=None):
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe).validate_python(yaml.safe_load(recipe.to_yaml()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation": {"epoch": 3}}, "optimisation.epoch"),
        ({"optimisation": {"epochs": "many"}}, "optimisation.epochs"),
        ({"model": {"towers": "huge"}}, "model.towers"),
    ],
)
def test_a_wrong_field_is_named(changes, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        load_recipe(str(write_recipe(tmp_path / "recipe.yaml", **changes)))


def test_an_unknown_recipe_names_those_that_ship():
    with pytest.raises(SettingsError, match="embedded"):
        load_recipe("nothing")


def test_deviations_of_audio_and_words_from_neutral_add_up():
    both = with_foreign_words(example(4.5, "voice"), example(4.0, "words", spoken=False))
    assert both.vad.tolist() == [5.0, 5.0, 5.0]
    assert with_foreign_words(example(4.0), example(2.5)).vad.tolist() == [3.5, 3.5, 3.5]
    assert both.transcript == "words"
    assert both.waveform is not None


def test_what_one_of_voice_and_words_has_no_label_of_has_none_together():
    words = Example(None, "words", np.array([4.0, np.nan, 2.0], np.float32))
    np.testing.assert_array_equal(with_foreign_words(example(3.5), words).vad, [4.5, np.nan, 2.5])


def write_diaries(path, count=60):
    """Texts of twenty writers whose words say their valence and arousal; none has a dominance."""
    rows = [
        f"{index % 20 + 1},{index},{['bad', 'so', 'good'][index % 3]},t,1,False,{index % 3 - 1},{index % 3}"
        for index in range(count)
    ]
    path.write_text(
        "user_id,text_id,text,timestamp,collection_phase,is_words,valence,arousal\n" + "\n".join(rows) + "\n"
    )
    return path


def test_a_dimension_without_labels_is_neither_trained_nor_scored(manifest, tmp_path):
    corpora = {**RECIPE["corpora"], "diaries": {"kind": "diaries", "split": "given"}}
    recipe = write_recipe(tmp_path / "recipe.yaml", model=JOINT, corpora=corpora)
    diaries = write_diaries(tmp_path / "diaries.csv")
    more = ("--data", f"diaries={diaries}", "--epochs", "1")
    result = CliRunner().invoke(train, arguments("joint", recipe, manifest, tmp_path / "run", *more))
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert set(metrics["diaries"]["test"]["dimensions"]) == {"valence", "arousal"}
    assert set(metrics["mini"]["test"]["dimensions"]) == {"valence", "arousal", "dominance"}
    logged = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"diaries_valence_pcc", "diaries_arousal_pcc", "mini_dominance_pcc"} <= set(logged)
    assert "diaries_dominance_pcc" not in logged
    weights = load_file(tmp_path / "run" / "model" / "head.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_corpus_is_cut_its_own_way_and_its_test_part_is_kept(tmp_path):
    diaries = write_diaries(tmp_path / "diaries.csv")
    recipe = write_recipe(tmp_path / "recipe.yaml", corpora={})
    common = ["valence", "--recipe", str(recipe), "--data", f"diaries={diaries}", "--epochs", "1", "--json"]
    drawn = CliRunner().invoke(train, [*common, "--output", str(tmp_path / "a"), "--split", "held-out-speakers"])
    assert drawn.exit_code == 1
    assert "diaries: " in drawn.stderr
    assert "for the last test alone: use the split given" in drawn.stderr
    own = CliRunner().invoke(train, [*common, "--output", str(tmp_path / "b")])
    assert own.exit_code == 0, own.output
    assert json.loads((tmp_path / "b" / "run.json").read_text())["sizes"]["diaries"]["test"] == 6


def test_a_corpus_without_labels_of_the_target_is_refused(tmp_path):
    rows = [f"m{index},R_{index},7,6,Words {index}" for index in range(60)]
    path = tmp_path / "messages.csv"
    path.write_text("message_id,response_id,empathy,distress,essay\n" + "\n".join(rows) + "\n")
    command = ["arousal-dominance", "--data", f"empathic={path}", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(train, command)
    assert result.exit_code == 1
    assert "empathic: its train part has hardly a label of arousal or dominance" in result.stderr


def test_an_epoch_leaves_out_streams_in_the_shares_asked_for():
    settings = CorpusSettings(
        "manifest", per_epoch=40, foreign_words=0.5, words_from="x", without_words=0.1, without_voice=0.2
    )
    corpus = LoadedCorpus(settings, [example(3.0, f"own {index}") for index in range(50)], [])
    drawn = draw(corpus, [example(4.0, "theirs", spoken=False)], np.random.default_rng(0))
    assert len(drawn) == 40
    assert sum(item.transcript == "theirs" for item in drawn) == 20
    assert sum(item.transcript == "" for item in drawn) == 4
    assert sum(item.waveform is None for item in drawn) == 8


def test_long_recordings_are_cut_to_a_random_window():
    corpus = LoadedCorpus(CorpusSettings("manifest", longest_s=0.5), [example(3.0, samples=20_000)] * 3, [])
    assert {len(item.waveform) for item in draw(corpus, [], np.random.default_rng(0))} == {8000}


def test_epochs_differ_and_repeat_by_seed():
    corpora = {"a": LoadedCorpus(CorpusSettings("manifest"), [example(3.0, str(n)) for n in range(64)], [])}
    first, again, second = (draw_epoch(corpora, Recipe(), epoch) for epoch in (0, 0, 1))
    words = [[item.transcript for batch in epoch for item in batch] for epoch in (first, again, second)]
    assert words[0] == words[1] != words[2]
    assert sorted(words[0]) == sorted(words[2])


def test_a_neutral_voice_leaves_foreign_words_as_they_are():
    """The neutral of a corpus of voices lies at (3, 2.5, 3): a calm voice below it takes arousal away."""
    words, neutral = example(4.0, words="b"), (3.0, 2.5, 3.0)
    flat = Example(example(3.0).waveform, "a", np.array([3.0, 2.5, 3.0], np.float32))
    calm = Example(example(3.0).waveform, "a", np.array([3.5, 2.0, 3.0], np.float32))
    assert with_foreign_words(flat, words, neutral).vad.tolist() == [4.0, 4.0, 4.0]
    assert with_foreign_words(calm, words, neutral).vad.tolist() == [4.5, 3.5, 4.0]
    settings = CorpusSettings("cremad", foreign_words=1.0, words_from="w", neutral=neutral)
    [drawn] = draw(LoadedCorpus(settings, [flat], []), [words], np.random.default_rng(0))
    assert drawn.vad.tolist() == [4.0, 4.0, 4.0]
