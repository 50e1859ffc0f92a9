"""The models of the paper's Tables I and II: joint targets, frozen towers, unimodal baselines, and their sizes.

    .venv/bin/pytest tests/unit/test_architectures.py

All models here are random; but for the counts of parameters they are tiny.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from attune_training.checkpoints import load_regressor, save_regressor, trained_parameters, warm_start
from attune_training.config import LoraSettings, RegressorConfig, tiny_config
from attune_training.regressor import Regressor, build_regressor, merge_adapters

JOINT = "valence_arousal_dominance"


def regressor(target=JOINT, seed=0, **changes) -> Regressor:
    torch.manual_seed(seed)
    return build_regressor(replace(tiny_config(target), **changes), None).eval()


def speech(rows, size, seed=1):
    return 0.2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def words(rows, size, seed=2):
    return torch.randint(5, 100, (rows, size), generator=torch.Generator().manual_seed(seed))


def predict(model, waveform, lengths, ids, mask=None, present=None):
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.inference_mode():
        return model(waveform, torch.tensor(lengths).unsqueeze(1), ids, mask, present)


def test_the_joint_model_has_a_column_and_stages_for_each_dimension():
    model = regressor()
    assert model.config.output_names == ("valence", "arousal", "dominance")
    assert list(model.stages) == ["valence", "arousal", "dominance"]
    inputs = (speech(2, 9000), [9000, 5000], words(2, 6))
    before = predict(model, *inputs)
    assert before.shape == (2, 3)
    with torch.no_grad():
        model.stages["arousal"].output.bias.add_(1.0)
    assert (predict(model, *inputs) != before).tolist() == [[False, True, False]] * 2


def test_a_model_without_adapters_leaves_its_towers_frozen():
    model = regressor(lora=None)
    assert not [name for name, _ in model.named_parameters() if ".lora_" in name]
    towers = [name for name in trained_parameters(model) if name.startswith(("audio_tower.", "text_tower."))]
    assert towers == ["audio_tower.mix.weights"]
    inputs = (speech(2, 9000), [9000, 5000], words(2, 6))
    assert torch.equal(predict(merge_adapters(model), *inputs), predict(model, *inputs))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8, text_modules=("query", "key", "value"))])
@pytest.mark.parametrize("target", ["valence", "arousal_dominance", JOINT])
def test_a_config_is_exact_in_json(target, lora):
    config = replace(tiny_config(target), lora=lora)
    assert RegressorConfig.from_json(config.to_json()) == config


def test_a_config_that_is_silent_about_lora_is_refused():
    raw = json.loads(tiny_config(JOINT).to_json())
    del raw["lora"]
    with pytest.raises(ValueError, match="LoraSettings: expected exactly the fields"):
        RegressorConfig.from_json(json.dumps(raw))


def test_a_model_without_adapters_is_saved_without_their_file(tmp_path):
    save_regressor(regressor(), tmp_path)  # A former model in the same folder leaves nothing behind.
    model = regressor(lora=None)
    save_regressor(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "head.safetensors"]
    loaded = load_regressor(tmp_path, None)
    assert loaded.config == model.config
    for name, value in trained_parameters(model).items():
        assert torch.equal(trained_parameters(loaded)[name], value.half().float())


def test_the_adapters_of_an_adapted_model_must_be_there(tmp_path):
    save_regressor(regressor(), tmp_path)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter\.safetensors"):
        load_regressor(tmp_path, None)


@pytest.mark.parametrize(("target", "stages"), [("valence", 1), ("arousal_dominance", 2)])
def test_a_warm_start_takes_the_trunk_and_the_stages_that_both_have(target, stages, tmp_path):
    joint = regressor(seed=0)
    save_regressor(joint, tmp_path)
    model = regressor(target, seed=1)
    report = warm_start(model, tmp_path)
    assert report.fresh == ()
    assert len([name for name in report.copied if name.endswith(".output.bias")]) == stages + 4  # Four attentions.
    for name, value in trained_parameters(model).items():
        assert torch.equal(value, trained_parameters(joint)[name].half().float()), name


def test_a_warm_start_says_what_stays_fresh(tmp_path):
    save_regressor(regressor("valence"), tmp_path)
    model = regressor("arousal_dominance", seed=1, lora=LoraSettings(rank=3, alpha=6))
    before = {name: value.clone() for name, value in trained_parameters(model).items()}
    report = warm_start(model, tmp_path)
    assert {name.split(".")[0] for name in report.fresh} == {"audio_tower", "text_tower", "stages"}
    assert all(".lora_" in name or name.startswith("stages.") for name in report.fresh)
    assert "audio_norm.weight" in report.copied
    assert "audio_tower.mix.weights" in report.copied
    assert sorted(report.copied + report.fresh) == sorted(before)
    assert all(torch.equal(trained_parameters(model)[name], before[name]) for name in report.fresh)


def test_a_warm_start_from_a_model_that_shares_nothing_is_refused(tmp_path):
    save_regressor(regressor(hidden_dim=8), tmp_path / "other")
    narrow = regressor("valence", audio=replace(tiny_config("valence").audio, width=16, num_heads=2))
    with pytest.raises(ValueError, match="no matrix of the trunk fits the model"):
        warm_start(narrow, tmp_path / "other")
    torch.manual_seed(0)
    hubert = build_regressor(tiny_config("valence", "hubert"), None)
    with pytest.raises(ValueError, match="has a whisper tower where the model has hubert"):
        warm_start(hubert, tmp_path / "other")
