"""What a run keeps: the best model in one step, never one that is no numbers, and measured by one process.

.venv/bin/pytest tests/unit/test_training_saving.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from attune_training.data.batches import Collator, TextTokens
from attune_training.fitting.callbacks import KeepBest
from attune_training.fitting.epochs import EpochData, LoadedCorpus
from attune_training.fitting.module import SCORE, RegressionModule
from attune_training.fitting.settings import CorpusSettings, Recipe
from attune_training.machine import is_first_process
from attune_training.models.checkpoints import load_model, save_model
from attune_training.pretrained import build
from attune_weights import files
from attune_weights.files import recover_folder, replace_folder
from tests.miniature import write_manifest
from tests.unit.test_training_fitting import RECIPE, example


@pytest.fixture
def module():
    model = build("tiny", "cross-modal-separate", "valence", None).model
    return RegressionModule(model, Recipe(), [], 0, 1)


def epoch(keeper, module, score, value, first=True):
    """End a validation with this score, by a model whose weights are all `value`."""
    with torch.no_grad():
        for parameter in module.model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    keeper.on_validation_end(SimpleNamespace(callback_metrics={SCORE: score}, is_global_zero=first), module)


def kept(folder):
    """The value of all weights of a whole saved model."""
    load_model(folder, None)
    values = {value for tensor in load_file(folder / "head.safetensors").values() for value in tensor.unique().tolist()}
    [value] = values
    return value


def test_the_best_score_is_kept(tmp_path, module):
    keeper = KeepBest(tmp_path / "model")
    for score, value in ((0.1, 1.0), (0.3, 2.0), (0.2, 3.0), (float("nan"), 4.0)):
        epoch(keeper, module, score, value)
    assert kept(tmp_path / "model") == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_one_process_of_several_saves(tmp_path, module):
    keeper = KeepBest(tmp_path / "model")
    epoch(keeper, module, 0.1, 1.0, first=False)
    assert not (tmp_path / "model").exists()
    assert keeper.best == 0.1, "all of them know the best score"


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", range(5))
def test_a_kill_at_any_step_leaves_one_of_the_two_models_whole(
    tmp_path, module, monkeypatch, can_exchange, after, call
):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    keeper = KeepBest(tmp_path / "model")
    epoch(keeper, module, 0.1, 1.0)
    calls = 0

    def deadly(real):
        def step(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == call + 1 and not after:
                raise Killed
            result = real(*arguments, **options)
            if calls == call + 1:
                raise Killed
            return result

        return step

    with monkeypatch.context() as killing:
        killing.setattr("shutil.rmtree", deadly(files.shutil.rmtree))
        killing.setattr("pathlib.Path.rename", deadly(Path.rename))
        if can_exchange:
            killing.setattr(files, "_exchange", deadly(files._exchange))
        try:
            epoch(keeper, module, 0.2, 2.0)
        except Killed:
            assert not can_exchange or kept(tmp_path / "model") in (1.0, 2.0), "without being brought back"
    keeper = KeepBest(tmp_path / "model")  # as the resumed run makes it
    assert kept(tmp_path / "model") in (1.0, 2.0)
    epoch(keeper, module, 0.3, 3.0)
    assert kept(tmp_path / "model") == 3.0


def test_this_system_can_exchange_two_names(tmp_path):
    """So that the tests above have tried the one step, and not its replacement alone."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    try:
        files._exchange(tmp_path / "a", tmp_path / "b")
    except OSError as error:
        pytest.skip(f"not on this file system: {error}")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_folder_is_replaced_where_there_was_none(tmp_path):
    recover_folder(tmp_path / "model")
    (tmp_path / "fresh").mkdir()
    replace_folder(tmp_path / "fresh", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # the last one is infinite as float16
def test_a_model_that_diverged_is_not_saved_over_a_good_one(tmp_path, module, value):
    keeper = KeepBest(tmp_path / "model")
    epoch(keeper, module, 0.1, 1.0)
    with pytest.raises(ValueError, match="values that are not finite numbers; training has diverged"):
        epoch(keeper, module, 0.2, value)
    assert kept(tmp_path / "model") == 1.0


def test_saved_weights_that_are_no_numbers_are_refused(tmp_path, module):
    save_model(module.model, tmp_path)
    weights = load_file(tmp_path / "head.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[-1] = float("nan")
    save_file(weights, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=f"{name} holds values that are not finite numbers"):
        load_model(tmp_path, None)


# Several processes


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"LOCAL_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "3", "LOCAL_RANK": "0"}, False)],
)
def test_the_first_process_is_known_by_its_rank(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_every_process_validates_each_batch_once():
    """Equal shares for several processes repeat batches, which then count twice in the score."""
    corpus = LoadedCorpus(CorpusSettings("manifest"), [example(3.0)] * 3, [example(float(n % 5 + 1)) for n in range(5)])
    recipe = Recipe()
    recipe = Recipe(optimisation=recipe.optimisation.__class__(batch_size=1))
    data = EpochData({"a": corpus}, recipe, Collator(TextTokens.of_letters(), "valence", 8.0), 0)
    [loader] = data.val_dataloader()
    assert isinstance(loader.sampler, torch.utils.data.DistributedSampler), "Lightning puts no other in its place"
    assert sorted(batch.target.item() for batch in loader) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_two_processes_train_and_one_measures(tmp_path):
    """Two processes on the CPU (gloo): one result, said once, and written once."""
    manifest = write_manifest(tmp_path / "mini")
    optimisation = {**RECIPE["optimisation"], "epochs": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "optimisation": optimisation}))
    command = [Path(sys.executable).with_name("attune"), "train", "valence", "--recipe", tmp_path / "recipe.yaml"]
    command += ["--data", f"mini={manifest}", "--output", tmp_path / "run", "--json"]
    command += ["--accelerator", "cpu", "--devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert json.loads(line)["scores"]["mini"]["dimensions"]["valence"]["count"] == 10
    assert "MEMBER: 2/2" in done.stderr
    assert [line[:9] for line in done.stderr.splitlines() if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]["mini"]["test"]
    assert not list((tmp_path / "run").glob("*.partial"))
