"""The models of the paper's Tables I and II: joint targets, frozen towers, unimodal baselines, and their sizes.

    .venv/bin/pytest tests/unit/test_architectures.py

All models here are random; but for the counts of parameters they are tiny.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import attune_training
from attune_training.config import (
    TABLE_2_LORA,
    ArchitectureName,
    LoraSettings,
    RegressorConfig,
    UnimodalConfig,
    UnimodalName,
    architecture_configs,
    config_from_json,
    embedded_config,
    paper_config,
    tiny_config,
)
from attune_training.models.building import build_model, full_checkpoint_bytes, total_parameters, trainable_parameters
from attune_training.models.checkpoints import (
    checkpoint_bytes,
    load_model,
    load_regressor,
    read_config,
    save_model,
    trained_parameters,
    warm_start,
)
from attune_training.models.layers import attend
from attune_training.models.regressor import Regressor, build_regressor, merge_adapters
from attune_training.models.towers import LayerMix

JOINT = "valence_arousal_dominance"
UNIMODAL = get_args(UnimodalName)
# Every model of Table I; the last row is two.
CONFIGS = {
    f"{name}-{config.target}": config
    for name in get_args(ArchitectureName)
    for config in architecture_configs(name, tiny_config("valence"))
}
every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def regressor(target=JOINT, seed=0, **changes) -> Regressor:
    torch.manual_seed(seed)
    return build_regressor(replace(tiny_config(target), **changes), None).eval()


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return build_model(config, None).eval()


def lively(model):
    """Give every matrix a size at which the inputs move the output, so that a test can fail."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=2 * (parameter.numel() / len(parameter)) ** -0.5)
    return model.eval()


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
    for lower in (False, True):
        config = replace(tiny_config(target), lora=lora, lower_text_layers=lower)
        assert RegressorConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("target", ["valence", "arousal_dominance"])
def test_the_shipped_models_are_read(target):
    folder = Path(attune_training.__file__).parent / "artifacts" / "embedded" / target
    config = read_config(folder)
    assert config.calibration is not None
    assert replace(config, calibration=None) == embedded_config(target)


def test_a_config_that_is_silent_about_lora_is_refused():
    raw = json.loads(tiny_config(JOINT).to_json())
    del raw["lora"]
    with pytest.raises(ValueError, match="LoraSettings: expected exactly the fields"):
        RegressorConfig.from_json(json.dumps(raw))


def test_a_model_without_adapters_is_saved_without_their_file(tmp_path):
    save_model(regressor(), tmp_path)  # A former model in the same folder leaves nothing behind.
    model = regressor(lora=None)
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "head.safetensors"]
    loaded = load_regressor(tmp_path, None)
    assert loaded.config == model.config
    for name, value in trained_parameters(model).items():
        assert torch.equal(trained_parameters(loaded)[name], value.half().float())


def test_the_adapters_of_an_adapted_model_must_be_there(tmp_path):
    save_model(regressor(), tmp_path)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter\.safetensors"):
        load_regressor(tmp_path, None)


@pytest.mark.parametrize(("target", "stages"), [("valence", 1), ("arousal_dominance", 2)])
def test_a_warm_start_takes_the_trunk_and_the_stages_that_both_have(target, stages, tmp_path):
    joint = regressor(seed=0)
    save_model(joint, tmp_path)
    model = regressor(target, seed=1)
    report = warm_start(model, tmp_path)
    assert report.fresh == ()
    assert len([name for name in report.copied if name.endswith(".output.bias")]) == stages + 4  # Four attentions.
    for name, value in trained_parameters(model).items():
        assert torch.equal(value, trained_parameters(joint)[name].half().float()), name


def test_a_warm_start_says_what_stays_fresh(tmp_path):
    save_model(regressor("valence"), tmp_path)
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
    save_model(regressor(hidden_dim=8), tmp_path / "other")
    narrow = regressor("valence", audio=replace(tiny_config("valence").audio, width=16, num_heads=2))
    with pytest.raises(ValueError, match="no matrix of the trunk fits the model"):
        warm_start(narrow, tmp_path / "other")
    torch.manual_seed(0)
    hubert = build_regressor(tiny_config("valence", "hubert"), None)
    with pytest.raises(ValueError, match="has a whisper tower where the model has hubert"):
        warm_start(hubert, tmp_path / "other")


def test_table_one_has_six_rows_of_seven_models():
    assert list(CONFIGS) == [
        f"gru-shared-{JOINT}",
        f"gru-separate-{JOINT}",
        f"transformer-shared-{JOINT}",
        f"transformer-separate-{JOINT}",
        f"cross-modal-joint-{JOINT}",
        "cross-modal-separate-valence",
        "cross-modal-separate-arousal_dominance",
    ]
    with pytest.raises(ValueError, match=r"'lstm' is unknown; choose from gru-shared, .*cross-modal-separate"):
        architecture_configs("lstm", tiny_config("valence"))


@pytest.mark.parametrize("reference", [embedded_config("valence"), paper_config("valence")])
def test_the_rows_of_table_one_share_their_sizes_and_have_no_adapters(reference):
    for name in get_args(ArchitectureName):
        for config in architecture_configs(name, reference):
            assert config.audio == reference.audio
            assert (config.hidden_dim, config.dropout) == (reference.hidden_dim, reference.dropout)
            if isinstance(config, UnimodalConfig):
                assert (config.num_layers, config.feedforward) == (2, reference.extra_feedforward)
            else:
                assert config.lora is None


@every_model
def test_a_model_learns_a_toy_batch(config):
    model = model_of(config)
    lively(model.audio_tower)  # A randomly initialised tower's features depend on little but the positions.
    model.train()
    ids, target = words(6, 5), torch.linspace(1.5, 4.5, 6)[:, None]
    # A higher tone has a larger target.
    waveform = 0.1 * torch.sin(torch.arange(4000) * target / 3) + 0.01 * speech(6, 4000)
    lengths = torch.tensor([[4000], [3000], [4000], [2500], [4000], [4000]])
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(30):
        predicted = model(waveform, lengths, ids, torch.ones_like(ids), torch.ones(6))
        loss = (predicted - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert predicted.shape == (6, len(config.output_names))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    frozen = [name for name, value in model.named_parameters() if value.grad is None]
    assert all(name.startswith(("audio_tower.encoder.", "text_tower.")) for name in frozen)


@every_model
def test_a_model_is_saved_and_loaded_exactly(config, tmp_path):
    model = model_of(config, seed=3)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.copy_(parameter.half())  # What a file can hold.
    save_model(model, tmp_path)
    assert read_config(tmp_path) == config
    loaded = load_model(tmp_path, None)
    assert type(loaded) is type(model)
    assert not loaded.training
    loaded.load_state_dict({name: value for name, value in model.state_dict().items() if ".encoder." in name}, False)
    inputs = (speech(2, 6000), [6000, 4321], words(2, 6))
    assert torch.equal(predict(loaded, *inputs), predict(model, *inputs))


@every_model
def test_padding_never_matters(config):
    model = lively(model_of(config))
    clip, ids = speech(1, 5077), words(1, 4)
    alone = predict(model, clip, [5077], ids)
    waveform, more_ids = speech(3, 20_000, seed=5), words(3, 11, seed=6)
    waveform[1, :5077], more_ids[1, :4] = clip, ids  # The padding is noise, not zeros.
    mask = torch.ones_like(more_ids)
    mask[1, 4:] = 0
    beside = predict(model, waveform, [9000, 5077, 20_000], more_ids, mask)
    torch.testing.assert_close(beside[1:2], alone, atol=1e-5, rtol=0)
    other = predict(model, speech(1, 5077, seed=7), [5077], ids)
    assert (other - alone).abs().max() > 1e-3, "the clip must matter for this test to mean anything"


@pytest.mark.parametrize("name", UNIMODAL)
def test_a_unimodal_model_uses_audio_and_ignores_text(name):
    model = lively(model_of(*architecture_configs(name, tiny_config("valence"))))
    waveform, lengths = speech(2, 6000), [6000, 5000]
    one = predict(model, waveform, lengths, words(2, 6))
    assert torch.equal(predict(model, waveform, lengths, words(2, 9, seed=8)), one)
    absent = predict(model, waveform, lengths, words(2, 6), present=torch.tensor([0.0, 1.0]))
    assert torch.equal(absent[1], one[1])
    assert torch.equal(absent[0], predict(model, -waveform, lengths, words(2, 6), present=torch.zeros(2))[0])


@pytest.mark.parametrize(("name", "moved"), [("gru-shared", True), ("gru-separate", False)])
def test_only_a_shared_network_ties_the_dimensions(name, moved):
    model = lively(model_of(*architecture_configs(name, tiny_config("valence"))))
    inputs = (speech(1, 6000), [6000], words(1, 6))
    before = predict(model, *inputs)
    with torch.no_grad():
        next(iter(model.heads.values()))[0].weight.mul_(-1.0)  # The first layer of the first network.
    after = predict(model, *inputs)
    assert after[0, 0] != before[0, 0]
    assert (after[0, 1:] != before[0, 1:]).tolist() == [moved, moved]


@pytest.mark.parametrize("name", UNIMODAL)
def test_a_unimodal_model_trains_under_bfloat16(name):
    model = model_of(*architecture_configs(name, tiny_config("valence"))).train()
    with torch.autocast("cpu", torch.bfloat16):
        ids = words(2, 4)
        predicted = model(speech(2, 6000), torch.tensor([[6000], [4000]]), ids, torch.ones_like(ids))
    predicted.float().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in trained_parameters(model).values())


@pytest.mark.parametrize("name", UNIMODAL)
def test_a_unimodal_config_is_exact_in_json(name):
    (config,) = architecture_configs(name, tiny_config("valence", "hubert"))
    assert config_from_json(config.to_json()) == config
    assert json.loads(config.to_json())["architecture"] == name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architecture": "lstm-shared"}, "'architecture' must be one of gru-shared, gru-separate"),
        ({"depth": 3}, "UnimodalConfig: expected exactly the fields"),
        ({"audio": {}}, "AudioTowerConfig: expected exactly the fields"),
    ],
)
def test_a_wrong_unimodal_config_is_refused(change, complaint):
    raw = asdict(UnimodalConfig("gru-shared")) | change
    with pytest.raises(ValueError, match=complaint):
        config_from_json(json.dumps(raw))


def test_what_is_no_regressor_is_not_loaded_as_one(tmp_path):
    save_model(model_of(CONFIGS[f"gru-shared-{JOINT}"]), tmp_path)
    with pytest.raises(ValueError, match="holds a gru-shared model; a cross-modal regressor was expected"):
        load_regressor(tmp_path, None)


@pytest.mark.parametrize("lora", TABLE_2_LORA, ids=lambda lora: f"r{lora.rank}")
def test_the_adapters_of_table_two_have_the_papers_count(lora):
    """Section III-C3: (d + k) r numbers for each adapted d x k matrix."""
    assert lora.alpha == 2 * lora.rank
    model = build_regressor(replace(tiny_config("valence"), lora=lora), None)
    adapters = sum(value.numel() for name, value in trained_parameters(model).items() if ".lora_" in name)
    # Two matrices in each of two layers: 32 x 32 in the audio tower, 24 x 24 in the text tower.
    assert adapters == 4 * (32 + 32) * lora.rank + 4 * (24 + 24) * lora.rank
    frozen = build_regressor(replace(tiny_config("valence"), lora=None), None)
    assert trainable_parameters(model) - trainable_parameters(frozen) == adapters
    assert total_parameters(model) - total_parameters(frozen) == adapters


def test_the_papers_adapters_on_its_own_towers():
    """12 layers of HuBERT-base and of BERT-base, two 768 x 768 matrices in each, rank 16."""
    with torch.device("meta"):
        model = build_regressor(paper_config("valence"), None)
    adapters = sum(value.numel() for name, value in trained_parameters(model).items() if ".lora_" in name)
    assert adapters == 2 * 12 * 2 * (768 + 768) * 16


def test_a_checkpoint_holds_what_is_trained_in_half_precision(tmp_path):
    model = regressor()
    save_model(model, tmp_path)
    stored = checkpoint_bytes(tmp_path)
    assert stored == sum(file.stat().st_size for file in tmp_path.iterdir())
    names = sum(len(name) for name in trained_parameters(model))
    assert 0 < stored - 2 * trainable_parameters(model) < names + 120 * len(trained_parameters(model))
    assert full_checkpoint_bytes(model) == 4 * total_parameters(model)


def test_attention_under_bfloat16_is_done_in_float32():
    query, key, value = torch.randn(3, 2, 2, 5, 4).bfloat16().unbind()
    seen = []

    def attention(*tensors, attn_mask):
        seen.extend(tensor.dtype for tensor in tensors)
        return nn.functional.scaled_dot_product_attention(*tensors, attn_mask=attn_mask)

    with torch.autocast("cpu", torch.bfloat16):
        output = attend(attention, query, key, value, attn_mask=None)
    assert {*seen, output.dtype} == {torch.float32}
    expected = nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    torch.testing.assert_close(output, expected)


def test_no_attention_of_a_regressor_takes_the_cpus_slow_kernel(monkeypatch):
    """The towers' attention is transformers'; theirs must pass through ours too."""
    plain, seen = nn.functional.scaled_dot_product_attention, []

    def attention(query, *others, **options):
        seen.append(query.dtype)
        return plain(query, *others, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
    model, ids = regressor().train(), words(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        model(speech(2, 6000), torch.tensor([[6000], [4000]]), ids, torch.ones_like(ids))
    # Two layers of each tower, two further layers, two cross-attentions.
    assert seen == [torch.float32] * 8


def test_the_layer_mix_learns_as_the_plain_formula_does():
    torch.manual_seed(0)
    mix, outputs = LayerMix(3), [torch.randn(2, 4, 8, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.5, -1.0, 0.2]))
    goal = torch.randn(2, 4, 8)
    ours = torch.autograd.grad((mix(outputs) * goal).sum(), [mix.weights, *outputs])
    normed = nn.functional.layer_norm(torch.stack(outputs), (8,))
    plain = (normed * mix.weights.softmax(0)[:, None, None, None]).sum(0)
    for one, other in zip(ours, torch.autograd.grad((plain * goal).sum(), [mix.weights, *outputs]), strict=True):
        torch.testing.assert_close(one, other)
