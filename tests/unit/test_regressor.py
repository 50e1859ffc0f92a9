"""The regressors: towers that ignore padding, adapters that merge, checkpoints that load strictly, the equations.

    .venv/bin/pytest tests/unit/test_regressor.py

All models here are tiny and random. The golden numbers of the shipped weights are held on the exported models, in
test_golden.py.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ctranslate2.converters.transformers import WhisperLoader
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    HubertModel,
    MPNetModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from attune_training.config import (
    RegressorConfig,
    embedded_config,
    embedded_minilm_config,
    paper_config,
    tiny_config,
)
from attune_training.models.checkpoints import load_regressor, save_model, trained_parameters
from attune_training.models.layers import (
    AttentionPooling,
    EncoderLayer,
    MultiHeadAttention,
    SigmoidGate,
    length_mask,
    masked_mean,
    to_vad_scale,
)
from attune_training.models.regressor import OutputStages, Regressor, build_regressor, merge_adapters
from attune_training.models.towers import AudioTower, LogMel, TextTower, build_audio_tower

KINDS = ["whisper", "hubert"]
MAX_SAMPLES = 128_000
CLIP = 24_077  # No multiple of any hop: the edges have to be right too.


def lively(model):
    """Give every weight a size at which the inputs move the output, so that a test can fail."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=2 * (parameter.numel() / len(parameter)) ** -0.5)
    return model.eval()


def tiny_regressor(kind="whisper", target="arousal_dominance", text="bert") -> Regressor:
    torch.manual_seed(0)
    return lively(build_regressor(tiny_config(target, kind, text), None))


def tiny_tower(kind, **changes) -> AudioTower:
    torch.manual_seed(0)
    return lively(build_audio_tower(replace(tiny_config("valence", kind).audio, **changes), None))


def speech(rows, size, seed=1):
    """Noise with a slow envelope: [rows, size]."""
    noise = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return 0.2 * noise * (1 + torch.sin(torch.arange(size) / 3000.0))


def words(rows, size, seed=2):
    return torch.randint(5, 100, (rows, size), generator=torch.Generator().manual_seed(seed))


def predict(model, waveform, lengths, ids, mask, present=None):
    with torch.inference_mode():
        return model(waveform, torch.tensor(lengths).unsqueeze(1), ids, mask, present)


@pytest.mark.parametrize("kind", KINDS)
def test_tower_features_ignore_padding(kind):
    tower, clip = tiny_tower(kind), speech(1, CLIP)
    with torch.inference_mode():
        alone, alone_mask = tower(clip, torch.tensor([[CLIP]]))
        longer = speech(2, MAX_SAMPLES, seed=3)
        longer[0, :CLIP] = clip  # The padding is noise, not zeros.
        beside, mask = tower(longer, torch.tensor([[CLIP], [MAX_SAMPLES]]))
        padded, _ = tower(nn.functional.pad(clip, (0, MAX_SAMPLES - CLIP)), torch.tensor([[CLIP]]))
        other, _ = tower(speech(1, CLIP, seed=4), torch.tensor([[CLIP]]))
    frames = int(alone_mask.sum())
    assert frames == alone.shape[1] == int(mask[0].sum())
    assert alone.shape[2] == tower.config.width
    for features in (beside, padded):
        torch.testing.assert_close(features[:1, :frames], alone, atol=1e-4, rtol=0)
        assert not features[0, frames:].any()
    assert (other - alone).abs().max() > 0.05, "the features must depend on the clip for this test to mean anything"


@pytest.mark.parametrize(("kind", "text"), [("whisper", "bert"), ("hubert", "bert"), ("whisper", "mpnet")])
def test_prediction_ignores_padding_and_what_lies_in_it(kind, text):
    model = tiny_regressor(kind, text=text)
    clip, ids = speech(1, CLIP), words(1, 9)
    alone = predict(model, clip, [CLIP], ids, torch.ones_like(ids))

    waveform, more_ids = speech(2, MAX_SAMPLES, seed=5), words(2, 21, seed=6)
    waveform[0, :CLIP], more_ids[0, :9] = clip, ids
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, 9:] = 0
    beside = predict(model, waveform, [CLIP, MAX_SAMPLES], more_ids, mask)
    torch.testing.assert_close(beside[:1], alone, atol=1e-4, rtol=0)

    padded = predict(model, nn.functional.pad(clip, (0, 4000)), [CLIP], ids, torch.ones_like(ids))
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)
    louder = predict(model, speech(1, CLIP, seed=7), [CLIP], ids, torch.ones_like(ids))
    reworded = predict(model, clip, [CLIP], words(1, 9, seed=8), torch.ones_like(ids))
    assert (louder - alone).abs().max() > 1e-3
    assert (reworded - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 399, 400])
def test_clip_shorter_than_a_window_is_padded_alike(kind, size):
    tower, clip = tiny_tower(kind), speech(1, 400)
    with torch.inference_mode():
        short, mask = tower(clip, torch.tensor([[size]]))
        longer, longer_mask = tower(nn.functional.pad(clip, (0, 4000), value=9.0), torch.tensor([[size]]))
    frames = int(mask.sum())
    assert frames == int(longer_mask.sum()) >= 1
    assert short.isfinite().all()
    torch.testing.assert_close(longer[:, :frames], short[:, :frames], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [399, MAX_SAMPLES + 1])
def test_waveform_of_wrong_length_is_refused(kind, size):
    with pytest.raises(ValueError, match=rf"{size} samples; it must have 400 to 128000"):
        tiny_tower(kind)(torch.zeros(1, size), torch.tensor([[400]]))


def whisper_pair(clip):
    """Return the log-mel and the features of the tower and of transformers' own Whisper for a 2 s clip."""
    tower = tiny_tower("whisper", layer_mix=False, max_samples=32_000)
    theirs_mel = WhisperFeatureExtractor(feature_size=80, chunk_length=2)(
        clip[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    length = torch.tensor([[clip.shape[1]]])
    with torch.inference_mode():
        ours_mel = tower.front_end(clip, length)
        theirs = tower.encoder(theirs_mel).last_hidden_state
        ours, _ = tower(clip, length)
    return ours_mel, theirs_mel, ours, theirs


def test_whisper_tower_equals_transformers_whisper():
    # Transformers reflects the clip at its right end; the tower sees zeros there. With 200 silent samples at the end
    # both see the same, and everything must agree.
    clip = speech(1, 32_000)
    clip[:, -200:] = 0
    ours_mel, theirs_mel, ours, theirs = whisper_pair(clip)
    torch.testing.assert_close(ours_mel, theirs_mel, atol=2e-4, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_only_the_last_log_mel_frame_differs_from_transformers_at_a_sounding_edge():
    # The 25 ms window of the last frame alone reaches past the end (by 40 samples).
    ours_mel, theirs_mel, _, _ = whisper_pair(speech(1, 32_000))
    torch.testing.assert_close(ours_mel[..., :-1], theirs_mel[..., :-1], atol=2e-4, rtol=0)
    assert (ours_mel[..., -1] - theirs_mel[..., -1]).abs().max() > 1e-3


def test_log_mel_counts_frames_by_their_hop():
    counts = LogMel.num_frames(torch.tensor([[1], [160], [161], [128_000]]))
    assert counts.flatten().tolist() == [1, 1, 2, 800]


def test_hubert_tower_equals_transformers_hubert():
    tower = tiny_tower("hubert", layer_mix=False)
    clip = speech(1, CLIP)
    clip = (clip - clip.mean()) / clip.std(correction=0)  # What HuBERT's feature extractor does.
    with torch.inference_mode():
        ours, mask = tower(clip * 0.3 + 0.1, torch.tensor([[CLIP]]))
        theirs = tower.encoder(clip).last_hidden_state
    assert mask.all()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def save_ctranslate2_whisper(folder, quantization):
    """Write a random Whisper of the tiny tower's shape with CTranslate2's own converter; return its encoder."""
    audio = tiny_config("valence").audio
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=audio.width, encoder_layers=audio.num_layers, encoder_attention_heads=audio.num_heads,
            encoder_ffn_dim=audio.feedforward, num_mel_bins=audio.num_mels, decoder_layers=1, decoder_attention_heads=2,
            decoder_ffn_dim=8, vocab_size=10, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    spec = WhisperLoader().get_model_spec(whisper)
    spec.register_vocabulary([str(token) for token in range(10)])
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir()
    spec.save(str(folder))
    return whisper.model.encoder.state_dict()


@pytest.mark.parametrize("quantization", [None, "float16"])
def test_whisper_tower_loads_ctranslate2s_folder(tmp_path, quantization):
    original = save_ctranslate2_whisper(tmp_path / "whisper", quantization)
    loaded = build_audio_tower(tiny_config("valence").audio, tmp_path / "whisper").encoder.state_dict()
    assert loaded.keys() == original.keys()
    for name, value in loaded.items():
        expected = original[name][: len(value)]  # the tower has as many positions as it needs
        torch.testing.assert_close(value, expected.half().float() if quantization else expected)


def test_whisper_of_another_shape_or_format_is_refused(tmp_path):
    save_ctranslate2_whisper(tmp_path / "whisper", "float16")
    wider = replace(tiny_config("valence").audio, width=64)
    with pytest.raises(ValueError, match="does not hold weights of the configured shape"):
        build_audio_tower(wider, tmp_path / "whisper")
    with pytest.raises(ValueError, match=r"holds no model.bin"):
        build_audio_tower(wider, tmp_path)
    (tmp_path / "model.bin").write_bytes(b"PK not a model")
    with pytest.raises(ValueError, match="is not a model of CTranslate2"):
        build_audio_tower(wider, tmp_path)


def test_hubert_and_bert_load_from_folders(tmp_path):
    config = tiny_config("valence", "hubert")
    torch.manual_seed(1)
    hubert, bert = build_audio_tower(config.audio, None), TextTower(config.text, None)
    source = HubertModel(hubert.encoder.config)
    source.save_pretrained(tmp_path / "hubert")
    bert.encoder.save_pretrained(tmp_path / "bert")

    loaded = build_audio_tower(config.audio, tmp_path / "hubert").eval()
    clip = speech(1, CLIP)
    clip = (clip - clip.mean()) / clip.std(correction=0)
    with torch.inference_mode():
        theirs = source.eval()(clip, output_hidden_states=True).hidden_states
        ours, _ = loaded(clip, torch.tensor([[CLIP]]))
        torch.testing.assert_close(ours, loaded.mix(list(theirs)), atol=1e-4, rtol=0)
    text = TextTower(config.text, tmp_path / "bert")
    for name, value in bert.encoder.state_dict().items():
        torch.testing.assert_close(text.encoder.state_dict()[name], value)


def test_bert_folder_without_some_weights_is_refused(tmp_path):
    config = tiny_config("valence").text
    shallow = BertConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=100
    )
    BertModel(shallow, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"weights are missing for encoder\.layer\.1"):
        TextTower(config, tmp_path / "bert")
    with pytest.raises(ValueError, match="is not a folder"):
        TextTower(config, tmp_path / "nowhere")


def test_layer_mix_is_a_softmax_of_normed_layers():
    tower = tiny_tower("whisper")
    a, b, c = (torch.randn(2, 3, 32) * scale for scale in (1.0, 10.0, 100.0))
    with torch.no_grad():
        tower.mix.weights.copy_(torch.tensor([2.0, 1.0, 2.0]).log())
        mixed = tower.mix([a, b, c])
    norm = nn.LayerNorm(32, elementwise_affine=False)
    torch.testing.assert_close(mixed, 0.4 * norm(a) + 0.2 * norm(b) + 0.4 * norm(c))


@pytest.mark.parametrize(("kind", "text"), [("whisper", "bert"), ("hubert", "bert"), ("whisper", "mpnet")])
def test_merged_model_has_plain_layers_and_equal_outputs(kind, text):
    model = tiny_regressor(kind, text=text)
    merged = merge_adapters(model)
    assert any(isinstance(module, LoraLayer) for module in model.modules())
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    inputs = (speech(2, CLIP), [CLIP, 9000], words(2, 7), torch.ones(2, 7, dtype=torch.long))
    torch.testing.assert_close(predict(merged, *inputs), predict(model, *inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "text", "modules"),
    [
        ("whisper", "bert", {"query", "value"}),
        ("hubert", "bert", {"query", "value"}),
        ("whisper", "mpnet", {"q", "v"}),
    ],
)
def test_lora_update_is_scaled_by_alpha_over_rank(kind, text, modules):
    model = tiny_regressor(kind, text=text)
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj", *modules}
    assert len(adapted) == 8  # Two layers of each tower, two matrices of each.
    merged = merge_adapters(model)
    for name, module in adapted.items():
        update = module.lora_B["default"].weight @ module.lora_A["default"].weight * (4 / 2)
        torch.testing.assert_close(merged.get_submodule(name).weight, module.get_base_layer().weight + update)


@pytest.mark.parametrize("text", ["bert", "mpnet"])
def test_adapters_may_be_in_the_last_text_layers_alone(text, tmp_path):
    config = tiny_config("valence", text=text)
    config = replace(config, lora=replace(config.lora, text_layers=1))
    torch.manual_seed(0)
    model = build_regressor(config, None)
    adapters = [name for name in trained_parameters(model) if ".lora_" in name]
    assert {name.split(".")[4] for name in adapters if name.startswith("text")} == {"1"}
    assert sum(name.startswith("audio") for name in adapters) == 8, "the audio tower is adapted in both layers"
    save_model(model, tmp_path)
    assert load_regressor(tmp_path, None).config == config


@pytest.mark.parametrize("count", [0, 3])
def test_adapted_text_layers_must_be_there(count):
    config = tiny_config("valence")
    with pytest.raises(ValueError, match=f"text_layers is {count}; the text tower has 2 layers"):
        build_regressor(replace(config, lora=replace(config.lora, text_layers=count)), None)


def test_adapters_for_the_other_kind_of_text_tower_are_refused_or_renamed():
    config = tiny_config("valence", text="mpnet")
    berts = config.lora.for_text("bert")
    assert (berts.text_modules, berts.for_text("mpnet")) == (("query", "value"), config.lora)
    with pytest.raises(ValueError, match="not found in the base model"):
        build_regressor(replace(config, lora=berts), None)


@pytest.mark.parametrize("text", ["bert", "mpnet"])
def test_only_adapters_mix_and_head_are_trained(text):
    names = trained_parameters(tiny_regressor(text=text))
    assert not [name for name in names if ".encoder." in name and ".lora_" not in name]
    assert "audio_tower.mix.weights" in names
    assert {name.split(".")[1] for name in names if name.startswith("stages.")} == {"arousal", "dominance"}


def test_embedded_model_has_the_papers_shape():
    assert embedded_config("valence").output_names == ("valence",)
    config = paper_config("arousal_dominance")
    assert (config.audio.kind, config.audio.width, config.text.width, config.extra_audio_layers) == (
        "hubert",
        768,
        768,
        2,
    )
    assert (config.lora.rank, config.lora.alpha) == (16, 32)
    assert RegressorConfig.from_json(config.to_json()) == config


def test_config_of_a_model_saved_before_mpnet_is_read_as_berts():
    config = embedded_minilm_config("valence")
    raw = json.loads(config.to_json())
    del raw["text"]["kind"], raw["lora"]["text_layers"]
    assert RegressorConfig.from_json(json.dumps(raw)) == config
    mpnet = embedded_config("valence")
    assert RegressorConfig.from_json(mpnet.to_json()) == mpnet


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"target": "joy"}, "'target' must be one of valence, arousal_dominance"),
        ({"depth": 3}, "expected exactly the fields"),
        ({"audio": {"kind": "whisper"}}, "AudioTowerConfig: expected exactly the fields"),
    ],
)
def test_wrong_config_is_refused(change, complaint):
    raw = json.loads(tiny_config("valence").to_json()) | change
    with pytest.raises(ValueError, match=complaint):
        RegressorConfig.from_json(json.dumps(raw))


def test_unknown_tower_is_refused():
    config = tiny_config("valence")
    with pytest.raises(ValueError, match="'wav2vec' is unknown; choose from whisper, hubert"):
        build_audio_tower(replace(config.audio, kind="wav2vec"), None)
    with pytest.raises(ValueError, match="'t5' is unknown; choose from bert, mpnet"):
        TextTower(replace(config.text, kind="t5"), None)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_regressor_loads_rounded_to_half_precision(kind, tmp_path):
    model = tiny_regressor(kind)
    save_model(model, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter.safetensors",
        "config.json",
        "head.safetensors",
    ]
    loaded = load_regressor(tmp_path / "saved", None)
    # The frozen towers are no part of a checkpoint.
    frozen = {name: value for name, value in model.state_dict().items() if name not in trained_parameters(model)}
    loaded.load_state_dict(frozen, strict=False)
    assert not loaded.training
    assert loaded.config == model.config
    for name, value in trained_parameters(model).items():
        torch.testing.assert_close(trained_parameters(loaded)[name].data, value.data.half().float(), atol=0, rtol=0)
    assert all(".lora_" in name for name in load_file(tmp_path / "saved/adapter.safetensors"))
    assert not any(".lora_" in name for name in load_file(tmp_path / "saved/head.safetensors"))
    inputs = (speech(1, CLIP), [CLIP], words(1, 7), torch.ones(1, 7, dtype=torch.long))
    torch.testing.assert_close(predict(loaded, *inputs), predict(model, *inputs), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda head: head.pop("audio_norm.weight"), r"missing weights \['audio_norm.weight'\]"),
        (lambda head: head.update(extra=torch.zeros(1)), r"unexpected weights \['extra'\]"),
        (lambda head: head.update({"audio_norm.weight": torch.zeros(3)}), r"audio_norm.weight has shape \(3,\)"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused(edit, complaint, tmp_path):
    save_model(tiny_regressor(), tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    edit(head)
    save_file(head, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=complaint):
        load_regressor(tmp_path, None)


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json: it is not a saved model"):
        load_regressor(tmp_path, None)


@pytest.mark.parametrize(("raw", "expected"), [(-60.0, 1.0), (0.0, 3.0), (60.0, 5.0), (1.0, 3.924234)])
def test_output_is_one_plus_four_sigmoid(raw, expected):
    """Equation 13."""
    stages = OutputStages(4, dropout=0.0).eval()
    nn.init.zeros_(stages.output.weight)
    nn.init.constant_(stages.output.bias, raw)
    with torch.no_grad():
        assert to_vad_scale(stages(torch.randn(1, 8))).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("target", "columns"), [("valence", 1), ("arousal_dominance", 2)])
def test_output_stays_within_the_scale(target, columns):
    model = tiny_regressor(target=target)
    ids = words(6, 5)
    output = predict(model, speech(6, 9000) * 30, [9000] * 6, ids, torch.ones_like(ids))
    assert output.shape == (6, columns)
    assert ((output >= 1) & (output <= 5)).all()


def test_each_dimension_has_its_own_stages():
    model = tiny_regressor()
    ids = words(1, 5)
    inputs = (speech(1, 9000), [9000], ids, torch.ones_like(ids))
    before = predict(model, *inputs)
    with torch.no_grad():
        model.stages["dominance"].fusion[0].weight.zero_()
    after = predict(model, *inputs)
    assert after[0, 0] == before[0, 0]
    assert after[0, 1] != before[0, 1]


def test_gate_on_worked_numbers():
    """Equations 7-8 with W = [1, 2], b = -1."""
    gate = SigmoidGate(1)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        gate.linear.bias.fill_(-1.0)
        gated = gate(torch.tensor([[[3.0]]]), torch.tensor([[[-1.0]]]))
    assert gated.item() == pytest.approx(3.0 * 0.5)


def test_attention_pooling_on_worked_numbers():
    """Equation 11: weights 1/4 and 3/4 of two frames; a third is masked."""
    pooling = AttentionPooling(1)
    with torch.no_grad():
        pooling.hidden.weight.fill_(1.0)
        pooling.hidden.bias.zero_()
        pooling.score.weight.fill_(float(np.log(3) / np.tanh(1.0)))
        pooling.score.bias.zero_()
        pooled = pooling(torch.tensor([[[0.0], [1.0], [50.0]]]), torch.tensor([[True, True, False]]))
    assert pooled.item() == pytest.approx(0.75)


def test_masked_mean_on_worked_numbers():
    """Equation 12."""
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    assert masked_mean(values, torch.tensor([[True, True, False]])).tolist() == [[2.0, 4.0]]
    assert masked_mean(values, torch.tensor([[False, False, False]])).tolist() == [[0.0, 0.0]]


def test_attention_is_that_of_the_equations():
    """Equations 5-6, against torch's own module with the same weights."""
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = length_mask(torch.tensor([[5], [2]]), 5)
    expected, _ = theirs(queries, context, context, key_padding_mask=~mask)
    torch.testing.assert_close(ours(queries, context, mask), expected)


def test_attention_width_must_fit_its_heads():
    with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
        MultiHeadAttention(10, 3)


def test_encoder_layer_equals_torchs_own():
    torch.manual_seed(0)
    ours = EncoderLayer(8, 2, 16, dropout=0.1).eval()
    theirs = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True).eval()
    attention = ours.attention
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        theirs.self_attn.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key.bias, attention.value.bias]))
        theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
        theirs.linear1.load_state_dict(ours.expand.state_dict())
        theirs.linear2.load_state_dict(ours.contract.state_dict())
        values, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
        torch.testing.assert_close(ours(values, mask), theirs(values))


def test_masked_audio_has_no_effect_and_text_has():
    model = tiny_regressor()
    ids = words(2, 7)
    mask = torch.ones_like(ids)
    absent = torch.tensor([0.0, 0.0])
    one = predict(model, speech(2, 9000), [9000, 9000], ids, mask, absent)
    two = predict(model, speech(2, 400, seed=9), [400, 20], ids, mask, absent)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    reworded = predict(model, speech(2, 9000), [9000, 9000], words(2, 7, seed=10), mask, absent)
    assert (reworded - one).abs().max() > 1e-3


def test_present_audio_is_the_default():
    model = tiny_regressor()
    ids = words(2, 7)
    inputs = (speech(2, 9000), [9000, 9000], ids, torch.ones_like(ids))
    torch.testing.assert_close(predict(model, *inputs, torch.tensor([1.0, 1.0])), predict(model, *inputs))
    mixed = predict(model, *inputs, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mixed[:1], predict(model, *inputs)[:1])


def with_lower_layers(model) -> Regressor:
    """Return a regressor with the same weights that also takes the layers below the text tower's last one."""
    more = build_regressor(replace(model.config, lower_text_layers=True), None)
    missing, unexpected = more.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == (["lower_text_projection.weight"], [])
    return more.eval()


def test_lower_text_layers_have_no_effect_at_first_and_are_trained():
    model = tiny_regressor()
    more, ids = with_lower_layers(model), words(2, 7)
    inputs = (speech(2, 9000), [9000, 9000], ids, torch.ones_like(ids))
    torch.testing.assert_close(predict(more, *inputs), predict(model, *inputs))
    nn.init.normal_(more.lower_text_projection.weight)
    assert (predict(more, *inputs) - predict(model, *inputs)).abs().max() > 1e-3
    padded = (*inputs[:2], nn.functional.pad(ids, (0, 3), value=5), nn.functional.pad(inputs[3], (0, 3)))
    torch.testing.assert_close(predict(more, *padded), predict(more, *inputs), atol=1e-5, rtol=0)


def test_the_text_towers_layers_are_those_of_transformers():
    tower = tiny_regressor().text_tower.eval()
    ids, mask = words(2, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    expected = tower.encoder(ids, mask[:, None, None, :] > 0, output_hidden_states=True).hidden_states
    for ours, theirs in zip(tower.layers(ids, mask), expected, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1, :4], theirs[1, :4])


def mpnet_tower() -> TextTower:
    """Return a tower whose tokens differ so much that a wrong position or mask cannot hide."""
    torch.manual_seed(0)
    return lively(TextTower(tiny_config("valence", text="mpnet").text, None))


def save_published_mpnet(tower, folder) -> MPNetModel:
    """Return transformers' own model with the tower's weights, as saved in `folder`."""
    theirs = MPNetModel(tower.encoder.config).eval()
    assert not theirs.load_state_dict(tower.encoder.state_dict(), strict=False).unexpected_keys
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("size", [1, 7, 200])
def test_mpnet_towers_layers_are_those_of_transformers(size, tmp_path):
    """200 tokens reach past the distance from which all share a bucket; the first text is padded to that length."""
    tower = mpnet_tower()
    theirs = save_published_mpnet(tower, tmp_path)
    real = -(-size // 2)
    ids, mask = words(2, size), torch.ones(2, size, dtype=torch.long)
    mask[0, real:] = 0
    with torch.inference_mode():
        # What transformers takes for padding is its own token, 1.
        expected = theirs(ids.masked_fill(mask == 0, 1), mask, output_hidden_states=True).hidden_states
        for layers in (tower.layers(ids, mask), tower.layers(ids * mask, mask)):
            for ours, other in zip(layers, expected, strict=True):
                torch.testing.assert_close(ours[0, :real], other[0, :real], atol=1e-5, rtol=0)
                torch.testing.assert_close(ours[1], other[1], atol=1e-5, rtol=0)
    moved = tower(ids.flip(1), torch.ones_like(ids)).flip(1) - tower(ids, torch.ones_like(ids))
    assert size == 1 or moved.abs().max() > 0.05, "order must matter for this test to mean anything"


def test_mpnet_loads_from_a_folder_with_a_pooler(tmp_path):
    tower = mpnet_tower()
    save_published_mpnet(tower, tmp_path)
    loaded = TextTower(tower.config, tmp_path)
    for name, value in tower.encoder.state_dict().items():
        torch.testing.assert_close(loaded.encoder.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"no MPNetModel of the configured shape|does not hold weights"):
        TextTower(replace(tower.config, width=48), tmp_path)


def test_mpnet_takes_as_many_tokens_as_its_config_says():
    tower = mpnet_tower()
    ids = words(1, tower.config.max_tokens)
    with torch.inference_mode():
        assert tower(ids, torch.ones_like(ids)).isfinite().all()
