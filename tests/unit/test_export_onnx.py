"""Export: graphs agree with the protocol's declarations and with PyTorch's outputs, and a wrong one is rejected.

Run: pytest tests/unit/test_export_onnx.py
"""

import hashlib
import re
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from attune_client.protocol import DType, ModelSpec, TensorSpec
from attune_client.protocol.models import EMOTION_CLASSIFIER, NUM_EMOTIONS, SENTENCE_ENCODER
from attune_export.cut import SHIPPED, specs_at
from attune_export.errors import ExportError
from attune_export.onnx_export import (
    TOLERANCE,
    SentenceEncoder,
    Sizes,
    check_export,
    check_graph,
    export_model,
    random_inputs,
)
from attune_export.tensorrt import build_script
from attune_training.config import AudioTowerConfig, LoraSettings, RegressorConfig, TextTowerConfig
from attune_training.emotion_map import EmotionClassifier
from attune_training.models.regressor import Regressor, build_regressor, merge_adapters
from attune_weights import WeightsError, fetch

VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL = (specs_at({})[name] for name in ("valence", "arousal_dominance"))
"""The regressors as they are where they share nothing: uncut."""
TEXT = TextTowerConfig(width=32, num_layers=1, num_heads=2, feedforward=64)
SMALL = {"width": 32, "num_layers": 1, "num_heads": 2, "feedforward": 64, "conv_channels": 16}
HUBERT = AudioTowerConfig(kind="hubert", position_kernel=8, position_groups=2, **SMALL)
WHISPER = AudioTowerConfig(kind="whisper", **SMALL)
SIZES = (Sizes(1, 400, 2), Sizes(3, 20_001, 17), Sizes(2, 9_000, 512))


def tiny_regressor(target, audio: AudioTowerConfig, text: TextTowerConfig = TEXT) -> Regressor:
    """A random regressor whose adapters and outputs are far from zero."""
    torch.manual_seed(5)
    model = build_regressor(
        RegressorConfig(
            target,
            audio=audio,
            text=text,
            lora=LoraSettings().for_text(text.kind),
            hidden_dim=16,
            num_heads=2,
            extra_audio_layers=1,
            extra_feedforward=32,
            lower_text_layers=True,
        ),
        None,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or name.startswith("lower_text"):
                parameter.normal_(std=0.2)
            if ".output.weight" in name:
                parameter.mul_(10.0)
    return model.eval()


@pytest.fixture(scope="module")
def valence(tmp_path_factory):
    """An adapted regressor with Whisper's tower, its merged copy, and the export of that."""
    adapted = tiny_regressor("valence", WHISPER)
    merged = merge_adapters(adapted)
    path = tmp_path_factory.mktemp("valence") / "model.onnx"
    report = export_model(merged, VALENCE_MODEL, path, sizes=SIZES)
    return adapted, path, report


def test_a_whisper_regressor_exports_within_tolerance(valence):
    _, path, report = valence
    assert report.max_deviation <= 1e-5
    assert report.size_bytes == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"], "no external data, nothing left over"


def test_a_regressor_with_mpnet_exports_within_tolerance_at_every_length(tmp_path):
    """Relative positions have 16 buckets on each side, in which distances beyond 8 share: short, long and longest."""
    text = replace(TEXT, kind="mpnet", num_layers=2, vocab_size=30_527)
    model = tiny_regressor("valence", WHISPER, text)
    with torch.no_grad():
        model.text_tower.encoder.encoder.relative_attention_bias.weight.normal_()
    sizes = [*SIZES, Sizes(1, 400, 9), Sizes(2, 400, 33), Sizes(2, 400, 130)]
    path = tmp_path / "model.onnx"
    report = export_model(merge_adapters(model), VALENCE_MODEL, path, sizes=sizes)
    assert report.max_deviation <= 1e-5
    torch.nn.init.zeros_(model.text_tower.encoder.encoder.relative_attention_bias.weight)
    with pytest.raises(ExportError, match="deviates from PyTorch"):
        check_export(path, model, VALENCE_MODEL, sizes=sizes, tolerance=1e-5)
    # As the server warms it up: zeros, all of it masked.
    silence = {name: np.zeros_like(value) for name, value in random_inputs(VALENCE_MODEL, Sizes(1)).items()}
    [answer] = onnxruntime.InferenceSession(path).run(None, silence)
    assert np.isfinite(answer).all()


def test_the_graph_is_merged_and_its_axes_are_named(valence):
    _, path, _ = valence
    model = onnx.load(path)
    names = [tensor.name for tensor in model.graph.initializer]
    assert names
    assert not [name for name in names if "lora" in name]
    shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
    assert shapes == {
        "waveform": ["batch", "samples"],
        "num_samples": ["batch", 1],
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
        "valence": ["batch", 1],
    }
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_the_export_answers_as_the_unmerged_model(valence):
    adapted, path, _ = valence
    assert check_export(path, adapted, VALENCE_MODEL, sizes=SIZES) <= TOLERANCE


def test_a_model_without_its_adapters_is_detected(valence):
    _, path, _ = valence
    torch.manual_seed(5)
    plain = tiny_regressor("valence", WHISPER)
    for name, parameter in plain.named_parameters():
        if ".lora_B." in name:
            nn.init.zeros_(parameter)
    with pytest.raises(ExportError, match=r"valence: 'valence' deviates from PyTorch by [\d.e-]+ at Sizes\(batch="):
        check_export(path, plain, VALENCE_MODEL, sizes=SIZES)


def test_a_graph_of_another_model_is_refused(valence):
    _, path, _ = valence
    with pytest.raises(ExportError, match=r"the protocol declares .*arousal_dominance"):
        check_graph(path, AROUSAL_DOMINANCE_MODEL)


def test_the_exported_prediction_ignores_padding(valence):
    _, path, _ = valence
    session = onnxruntime.InferenceSession(path)
    inputs = {name: value.numpy() for name, value in random_inputs(VALENCE_MODEL, Sizes(1, 12_345, 9)).items()}
    [alone] = session.run(None, inputs)
    padded = inputs | {"waveform": np.pad(inputs["waveform"], ((0, 0), (0, 19_655)))}
    for name in ("input_ids", "attention_mask"):
        padded[name] = np.pad(inputs[name], ((0, 0), (0, 23)))
    [longer] = session.run(None, padded)
    assert longer == pytest.approx(alone, abs=1e-5)


def test_a_hubert_regressor_exports_within_tolerance(tmp_path):
    model = merge_adapters(tiny_regressor("arousal_dominance", HUBERT))
    report = export_model(model, AROUSAL_DOMINANCE_MODEL, tmp_path / "model.onnx", sizes=SIZES)
    assert report.max_deviation <= 1e-5
    names = [tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert not [name for name in names if "lora" in name or "parametrizations" in name]


def tiny_classifier(kind: type[EmotionClassifier] = EmotionClassifier) -> EmotionClassifier:
    torch.manual_seed(5)
    classifier = kind(NUM_EMOTIONS, channels=8)
    classifier.minimum.fill_(1.2)
    classifier.maximum.fill_(4.7)
    return classifier.eval()


class Restless(EmotionClassifier):
    """A module whose outputs differ at every call."""

    def forward(self, valence: torch.Tensor, arousal_dominance: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vad, *tables = super().forward(valence, arousal_dominance)
        return vad + torch.rand_like(vad), *tables


class Broken(EmotionClassifier):
    """A module whose outputs are NaN."""

    def forward(self, valence: torch.Tensor, arousal_dominance: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vad, probabilities, expected = super().forward(valence, arousal_dominance)
        return vad, torch.log(probabilities - 2.0), expected


def test_the_emotion_classifier_exports_with_its_scaling_inside(tmp_path):
    report = export_model(tiny_classifier(), EMOTION_CLASSIFIER, tmp_path / "model.onnx", sizes=[Sizes(1), Sizes(256)])
    assert report.max_deviation <= 1e-6


@pytest.mark.parametrize(("kind", "fault"), [(Restless, "deviates from PyTorch by"), (Broken, "is not finite")])
def test_an_export_that_fails_its_check_leaves_nothing_behind(tmp_path, kind, fault):
    with pytest.raises(ExportError, match=rf"emotion_classifier: .* {fault}"):
        export_model(tiny_classifier(kind), EMOTION_CLASSIFIER, tmp_path / "model.onnx", sizes=[Sizes(2)])
    assert not list(tmp_path.iterdir())


def test_an_inner_value_may_bear_an_outputs_name(tmp_path):
    encoder = SentenceEncoder(TEXT, None)  # BERT's embedding layer gives a value named "embedding"
    spec = ModelSpec(
        "tiny_encoder", SENTENCE_ENCODER.inputs, (TensorSpec("embedding", DType.FP32, (TEXT.width,)),), max_batch_size=8
    )
    report = export_model(encoder, spec, tmp_path / "model.onnx", sizes=SIZES)
    assert report.max_deviation <= 1e-5


def test_the_sentence_encoder_embeds_as_sentence_transformers_does():
    try:
        weights = fetch("all-minilm-l6-v2")
    except WeightsError as error:
        pytest.skip(f"the weights cannot be fetched: {error}")
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(weights), device="cpu")
    texts = ["Soft strings under a slow piano.", "rain", "A brisk dance in a major key, with flute and harp, at dawn."]
    tokens = original.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = SentenceEncoder(TextTowerConfig(), weights).eval()(tokens["input_ids"], tokens["attention_mask"])
    assert ours.numpy() == pytest.approx(original.encode(texts), abs=1e-5)
    assert ours.norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_a_weight_that_is_no_number_is_refused_though_no_check_meets_it(tmp_path):
    """The embedding of a token that is never drawn: the outputs are right until an input contains it."""
    model = merge_adapters(tiny_regressor("valence", WHISPER))
    with torch.no_grad():
        model.text_tower.encoder.embeddings.word_embeddings.weight[7] = float("nan")
    assert torch.isfinite(model(**random_inputs(VALENCE_MODEL, Sizes(2)))).all()
    with pytest.raises(ExportError, match=r"valence: the weight 'text_tower.*' holds values that are not finite"):
        export_model(model, VALENCE_MODEL, tmp_path / "model.onnx", sizes=SIZES[:1])
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_no_number_is_called_that(valence):
    _, path, _ = valence

    class Nothing(nn.Module):
        def forward(self, waveform, num_samples, input_ids, attention_mask):
            return torch.full((len(waveform), 1), float("nan"))

    with pytest.raises(ExportError, match="valence: 'valence' is not finite at Sizes"):
        check_export(path, Nothing(), VALENCE_MODEL, sizes=SIZES)


def test_the_engine_script_covers_every_size_that_is_served():
    script = build_script(VALENCE_MODEL, "model.tensorrt.onnx", "0" * 64)
    assert "--minShapes=waveform:1x400,num_samples:1x1,input_ids:1x2,attention_mask:1x2" in script
    assert "--maxShapes=waveform:16x128000,num_samples:16x1,input_ids:16x512,attention_mask:16x512" in script
    assert "--onnx=model.tensorrt.onnx" in script
    behind = build_script(specs_at(SHIPPED)["valence"], "model.tensorrt.onnx", "0" * 64)
    assert "--minShapes=audio_state:1x1x256,num_samples:1x1,text_state:1x2x256,attention_mask:1x2" in behind
    assert "--maxShapes=audio_state:16x400x256,num_samples:16x1,text_state:16x512x256,attention_mask:16x512" in behind
    classifier = build_script(EMOTION_CLASSIFIER, "model.tensorrt.onnx", "0" * 64)
    assert "--maxShapes=valence:256x1,arousal_dominance:256x2" in classifier


def test_the_engine_is_tuned_for_a_size_that_is_served():
    """What `speech_to_text` makes of 4.5 s, and `text_tokenizer` of its words: any other length never comes."""
    from attune_ensemble.speech.segmentation import Span, stack
    from attune_ensemble.speech.tokens import BUCKETS

    script = build_script(VALENCE_MODEL, "model.tensorrt.onnx", "0" * 64)
    [(batch, samples, tokens)] = re.findall(r"--optShapes=waveform:(\d+)x(\d+),\S+input_ids:\d+x(\d+),", script)
    assert int(samples) == stack(np.zeros(72_000, np.float32), [Span(0, 72_000)]).shape[1]
    assert int(tokens) in BUCKETS
    assert 1 < int(batch) <= VALENCE_MODEL.max_batch_size


@pytest.mark.parametrize(
    ("graph", "trtexec", "status"),
    [
        ("the graph", "touch model.plan.partial", 0),
        ("another graph", "touch model.plan.partial", 1),
        ("the graph", "echo 'exported meanwhile' > model.onnx; touch model.plan.partial", 1),
        ("the graph", "exit 3", 3),
    ],
)
def test_an_engine_is_never_that_of_another_graph(tmp_path, graph, trtexec, status):
    (tmp_path / "model.onnx").write_text(graph)
    script = build_script(EMOTION_CLASSIFIER, "model.onnx", hashlib.sha256(b"the graph").hexdigest())
    (tmp_path / "build_engine.sh").write_text(script)
    (tmp_path / "trtexec").write_text(f"#!/bin/sh\n{trtexec}\n")
    (tmp_path / "trtexec").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", tmp_path / "build_engine.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "model.plan").exists() == (status == 0)
    assert ("attune export --profile tensorrt" in done.stderr) == (status == 1)
