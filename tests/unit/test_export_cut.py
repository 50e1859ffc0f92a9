"""The regressors' cut: found where they begin to differ, exact, and exported with what is known of it.

Run: pytest tests/unit/test_export_cut.py
"""

from __future__ import annotations

import copy
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from torch import nn

from attune_client.protocol.models import (
    AROUSAL_DOMINANCE_MODEL,
    EMOTION_ENCODER,
    EMOTION_RECOGNITION,
    SPEECH_INPUTS,
    VALENCE_MODEL,
)
from attune_client.protocol.profiles import EMBEDDED, GPU, TENSORRT, config_path
from attune_client.protocol.tensors import ModelSpec
from attune_ensemble.serving.local import LocalModels
from attune_ensemble.serving.repository import check_repository
from attune_export import assemble as assembling
from attune_export import comparison
from attune_export.assemble import assemble
from attune_export.comparison import find_cut
from attune_export.cut import EMBEDDING, SHIPPED, State, read_states, specs_at, write_states
from attune_export.errors import ExportError
from attune_export.floor import Cost, cut_of_towers, floor_of, measure
from attune_export.onnx_export import Sizes, export_model, random_inputs
from attune_export.parts import Part
from attune_export.regressor import split
from attune_export.repository_config import model_config, parse, render, write_repository
from attune_training.config import tiny_config
from attune_training.models.cut import Cut, Head, SharedEncoder, audio_steps, text_steps
from attune_training.models.regressor import Regressor, build_regressor, merge_adapters

ROOT = Path(__file__).parents[2]
SPEECH = ModelSpec("speech", SPEECH_INPUTS, ())
SIZES = (Sizes(1, 400, 2), Sizes(3, 20_001, 17))
VOCABULARY = 30_522


def regressors(kind: str, text: str = "bert", **changes: object) -> list[Regressor]:
    """A valence model and an arousal-dominance model that are the same up to their output stages."""
    models = []
    for target in ("valence", "arousal_dominance"):
        torch.manual_seed(3)
        config = replace(tiny_config(target, kind, text), **changes)
        config = replace(config, text=replace(config.text, vocab_size=VOCABULARY))
        models.append(build_regressor(config, None))
    state = {name: value for name, value in models[0].state_dict().items() if not name.startswith("stages.")}
    with torch.no_grad():
        for name, value in state.items():
            if ".lora_B." in name or name.startswith("lower_text"):
                value.normal_(std=0.2)
    models[1].load_state_dict(state, strict=False)
    return [merge_adapters(model).eval() for model in models]


def speech(sizes: Sizes, seed: int = 1) -> dict[str, torch.Tensor]:
    return random_inputs(SPEECH, sizes, seed)


def changed(module: nn.Module, parameter: str) -> None:
    """Change one number of a parameter by the least that float32 can hold."""
    with torch.no_grad():
        value = module.get_parameter(parameter).view(-1)
        value[0] = torch.nextafter(value[0], value[0] + 1)


@pytest.mark.parametrize("kind", ["whisper", "hubert"])
@pytest.mark.parametrize(("text", "lower"), [("bert", False), ("mpnet", True)])
def test_both_parts_together_are_the_model_at_every_cut(kind, text, lower):
    model = regressors(kind, text, lower_text_layers=lower)[0]
    given = speech(Sizes(3, 9_001, 9))
    cuts = [Cut(index, None) for index in range(len(audio_steps(model)))]
    cuts += [Cut(None, index) for index in range(len(text_steps(model)))]
    cuts += [Cut(1, 2), Cut(len(audio_steps(model)) - 1, len(text_steps(model)) - 1), Cut(pooled=True), Cut()]
    with torch.no_grad():
        whole = model(**given)
        for cut in cuts:
            states = {name: State(*state) for name, state in cut.states(model).items()}
            specs = specs_at(states)
            tensors = dict(given)
            if states:
                encoder = specs[EMOTION_ENCODER.name]
                made = SharedEncoder(model, cut)(**{tensor.name: given[tensor.name] for tensor in encoder.inputs})
                tensors |= dict(zip(states, made, strict=True))
                assert [value.shape[-1] for value in made] == [state.width for state in states.values()]
            head = {tensor.name: tensors[tensor.name] for tensor in specs[VALENCE_MODEL.name].inputs}
            assert torch.equal(Head(model, cut)(**head), whole), cut


@pytest.fixture(scope="module")
def traced_once():
    """Tracing takes seconds, so the model that others are compared with is traced once."""
    trace, kept = comparison._state_digests, {}

    def digests(model: Regressor):
        if model.config.target != "valence":
            return trace(model)
        kind = model.config.audio.kind
        if kind not in kept:
            kept[kind] = trace(model)
        return kept[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_state_digests", digests)
        yield


def names(models: list[Regressor]) -> dict[str, str]:
    """The steps behind which the found cut lies."""
    return {state: behind for state, (behind, _) in find_cut(models).states(models[0]).items()}


def both_behind(step: str) -> dict[str, str]:
    return dict.fromkeys(("audio_state", "text_state"), step)


HUBERT_QUERY = "audio_tower.encoder.encoder.layers.{}.attention.q_proj.weight"
WHISPER_QUERY = "audio_tower.encoder.layers.{}.self_attn.q_proj.weight"
BERT_QUERY = "text_tower.encoder.encoder.layer.{}.attention.self.query.weight"


@pytest.mark.parametrize(
    ("kind", "differing", "expected"),
    [
        ("whisper", [], {"pooled_state": "pooling"}),
        ("whisper", ["audio_gate.linear.weight"], both_behind("projection")),
        ("hubert", [HUBERT_QUERY.format(0), BERT_QUERY.format(0)], both_behind(EMBEDDING)),
        ("hubert", [HUBERT_QUERY.format(1)], {"audio_state": "layer 1", "text_state": "projection"}),
        ("whisper", [WHISPER_QUERY.format(1), BERT_QUERY.format(1)], both_behind("layer 1")),
        ("whisper", ["audio_tower.mix.weights"], {"audio_state": "layer 2", "text_state": "projection"}),
        ("whisper", ["audio_norm.bias"], {"audio_state": "further layer 2", "text_state": "projection"}),
        ("whisper", ["text_projection.bias"], {"audio_state": "projection", "text_state": "layer 2"}),
        ("hubert", ["audio_tower.encoder.feature_extractor.conv_layers.0.conv.weight"], {"text_state": "projection"}),
        (
            "whisper",
            ["audio_tower.encoder.conv1.weight", "text_tower.encoder.embeddings.word_embeddings.weight"],
            {},
        ),
    ],
)  # fmt: skip
def test_the_cut_lies_before_the_first_number_that_differs(traced_once, kind, differing, expected):
    models = regressors(kind)
    for parameter in differing:
        changed(models[1], parameter)
    assert names(models) == expected


def test_another_architecture_over_the_same_weights_is_another_graph(traced_once):
    """Weights alone do not say what is computed with them."""
    models = regressors("whisper")
    models[1].audio_tower.layers()[0].activation_fn = nn.ReLU()
    assert names(models) == {"audio_state": EMBEDDING, "text_state": "projection"}


def test_a_third_model_shares_what_all_have_in_common(traced_once):
    first, second = regressors("whisper")
    third = copy.deepcopy(second)
    changed(third, "audio_gate.linear.weight")
    changed(third, WHISPER_QUERY.format(1))
    assert names([first, second, third]) == {"audio_state": "layer 1", "text_state": "projection"}


def differing_in(kind: str, *parameters: str) -> list[Regressor]:
    models = regressors(kind)
    for name in ("audio_gate.linear.weight", *parameters):
        nn.init.normal_(models[1].get_parameter(name), std=0.3)
    return models


TWO_PARTS = {
    "projection": lambda: differing_in("whisper"),
    "frozen": lambda: differing_in("hubert", HUBERT_QUERY.format(0), BERT_QUERY.format(0)),
    "words": lambda: differing_in("whisper", "audio_tower.encoder.conv1.weight"),
    "pooled": lambda: regressors("whisper"),
    "nothing": lambda: differing_in(
        "whisper", "audio_tower.encoder.conv1.weight", "text_tower.encoder.embeddings.word_embeddings.weight"
    ),
}  # fmt: skip


def build_repository(folder: Path, models: list[Regressor]) -> None:
    """Write the models at the cut as `attune export` does, without the others."""
    cut = split(models)
    for name, module in cut.modules.items():
        path = folder / name / "1" / "model.onnx"
        report = export_model(module, cut.specs[name], path, sizes=SIZES, draw=cut.drawer(name))
        assert report.max_deviation <= 1e-5
        config = folder / config_path(name, EMBEDDED)
        config.write_text(render(model_config(name, EMBEDDED, cut.states)))


@pytest.mark.parametrize("shared", TWO_PARTS)
def test_the_exported_parts_answer_as_the_whole_models(shared, tmp_path):
    models = TWO_PARTS[shared]()
    build_repository(tmp_path, models)
    sizes = {path.parents[1].name: path.stat().st_size for path in tmp_path.glob("*/1/model.onnx")}
    assert (EMOTION_ENCODER.name in sizes) == (shared != "nothing")
    vocabulary = 4 * VOCABULARY * tiny_config("valence").text.width
    assert (sizes["valence"] < vocabulary) == (shared != "nothing"), "what is shared is stored once"
    with LocalModels(tmp_path) as served:
        for sizes in (Sizes(1, 16_000, 8), Sizes(2, 128_000, 40), Sizes(3, 8_000, 512)):
            given = speech(sizes)
            tensors = {name: value.numpy() for name, value in given.items()}
            for spec, model in zip((VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL), models, strict=True):
                answer = served.call(spec.name, encoded(served, tmp_path, tensors, spec.name))
                with torch.no_grad():
                    expected = model(**given).numpy()
                np.testing.assert_allclose(answer[spec.outputs[0].name], expected, atol=1e-5)


def encoded(served: LocalModels, repository: Path, tensors: dict, model: str) -> dict:
    """The inputs of a regressor, with the encoder's states where its configuration has them."""
    if (repository / EMOTION_ENCODER.name).exists():
        tensors = tensors | served.call(EMOTION_ENCODER.name, taken(repository, EMOTION_ENCODER.name, tensors))
    return taken(repository, model, tensors)


def taken(repository: Path, model: str, tensors: dict) -> dict:
    config = parse((repository / config_path(model, EMBEDDED)).read_text())
    return {tensor.name: tensors[tensor.name] for tensor in config.input}


# The floor


def test_the_floor_counts_products_attention_and_the_weights_that_are_read():
    """Counted by hand for one linear layer over embeddings, and attention between them."""

    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer, self.unused = nn.Embedding(100, 8), nn.Linear(8, 4), nn.Linear(8, 8)

        def forward(self, input_ids):
            hidden = self.layer(self.words(input_ids))
            return nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)

    with torch.device("meta"):
        cost = measure(Toy().eval(), {"input_ids": torch.ones(1, 5, dtype=torch.long)})
    assert cost == Cost(operations=2 * 5 * 8 * 4 + 2 * (2 * 5 * 5 * 4), weight_bytes=4 * (5 * 8 + 8 * 4 + 4))


@pytest.mark.parametrize("shares_streams", [False, True])
def test_the_parts_of_the_floor_add_up_to_the_whole(shares_streams):
    with torch.device("meta"):
        configs = [replace(tiny_config(target, "hubert"), lora=None) for target in ("valence", "arousal_dominance")]
        models = [build_regressor(config, None).eval() for config in configs]
    cut = cut_of_towers(models[0], shares_streams)
    short, long = (floor_of(models, cut, duration_s) for duration_s in (2.0, 8.0))
    for floor in (short, long):
        for own, whole in zip(floor.own, floor.whole, strict=True):
            assert floor.shared.operations + own.operations == whole.operations
            assert floor.shared.weight_bytes + own.weight_bytes == whole.weight_bytes
    assert long.shared.operations > 3 * short.shared.operations
    width, frames, tokens = (16 if shares_streams else 32), 99, 8
    assert short.state_bytes == 4 * (frames * width + tokens * (16 if shares_streams else 24))


# What is known of a cut without the models


@pytest.mark.parametrize(
    ("states", "encoder", "head"),
    [
        (SHIPPED, ["waveform", "num_samples", "input_ids", "attention_mask"],
         ["audio_state", "num_samples", "text_state", "attention_mask"]),
        ({"audio_state": State(EMBEDDING, 768)}, ["waveform", "num_samples"],
         ["audio_state", "num_samples", "input_ids", "attention_mask"]),
        ({"text_state": State(EMBEDDING, 768)}, ["input_ids"],
         ["waveform", "num_samples", "text_state", "attention_mask"]),
        ({"pooled_state": State("pooling", 512)}, ["waveform", "num_samples", "input_ids", "attention_mask"],
         ["pooled_state"]),
        ({}, None, ["waveform", "num_samples", "input_ids", "attention_mask"]),
    ],
)  # fmt: skip
def test_every_model_has_exactly_the_tensors_of_the_cut(states, encoder, head, tmp_path):
    write_states(tmp_path, states)
    assert read_states(tmp_path / "cut.json") == states
    specs = specs_at(states)
    for name in ("valence", "arousal_dominance"):
        assert [tensor.name for tensor in specs[name].inputs] == head
        assert not any(tensor.optional for tensor in specs[name].inputs)
    assert (EMOTION_ENCODER.name in specs) == (encoder is not None)
    if encoder is not None:
        assert [tensor.name for tensor in specs[EMOTION_ENCODER.name].inputs] == encoder
        made = {tensor.name: tensor.shape[-1] for tensor in specs[EMOTION_ENCODER.name].outputs}
        assert made == {name: state.width for name, state in states.items()}
    ensemble = specs[EMOTION_RECOGNITION.name]
    assert (ensemble.inputs, ensemble.outputs) == (EMOTION_RECOGNITION.inputs, EMOTION_RECOGNITION.outputs)
    known = {tensor.name for tensor in ensemble.inputs}
    for step in ensemble.steps:
        assert {tensor.name for tensor in step.inputs} <= known, step.name
        known |= {tensor.name for tensor in step.outputs}


def test_a_spoilt_record_of_the_cut_says_what_puts_it_right(tmp_path):
    (tmp_path / "cut.json").write_text('{"audio_state": {"behind": 1}}')
    with pytest.raises(ExportError, match=r"cut\.json cannot be read .* export again with --force"):
        read_states(tmp_path / "cut.json")


# Exports of regressors with another cut than the shipped ones'

FROZEN = {"audio_state": State(EMBEDDING, 768), "text_state": State(EMBEDDING, 768)}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone's repository, in which an export places empty graphs of the cut `states`, a variable of the result."""
    write_repository(tmp_path)

    class Repository:
        folder = tmp_path
        states = SHIPPED

        def export(self, states, profile=EMBEDDED):
            self.states = states
            assemble(self.folder, profile=profile, console=Console(file=StringIO()))

        def plan(self, *_, **__):
            return tuple(
                Part(spec.name, {"cut": str(self.states)}, (), lambda target, spec=spec: self.build(target, spec))
                for spec in (EMOTION_ENCODER, VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL)
            )  # fmt: skip

        def build(self, target, spec):
            write_states(target, self.states)
            if spec.name in specs_at(self.states):
                (target / "model.onnx").touch()

        def text(self, name, profile=EMBEDDED):
            return (self.folder / config_path(name, profile)).read_text()

    made = Repository()
    monkeypatch.setattr(assembling, "plan", made.plan)
    return made


AT_THE_CUT = ("emotion_encoder", "valence", "arousal_dominance", "emotion_recognition")


def test_the_export_of_the_shipped_regressors_changes_no_configuration(repository):
    before = {path: path.read_text() for path in repository.folder.rglob("*.pbtxt")}
    repository.export(SHIPPED)
    assert {path: path.read_text() for path in repository.folder.rglob("*.pbtxt")} == before


def test_another_cut_is_configured_for_its_profile_alone_and_back(repository):
    repository.export(SHIPPED)
    repository.export(FROZEN, GPU)
    for name in AT_THE_CUT:
        assert repository.text(name) == render(model_config(name, EMBEDDED))
        assert repository.text(name, GPU) == render(model_config(name, GPU, FROZEN))
    assert list(parse(repository.text("valence", GPU)).input[0].dims) == [-1, 768]
    repository.export(SHIPPED, GPU)
    for name in AT_THE_CUT:
        assert repository.text(name, GPU) == render(model_config(name, GPU))


def test_regressors_that_share_nothing_have_no_encoder_until_others_do(repository):
    repository.export({})
    assert not (repository.folder / EMOTION_ENCODER.name).exists()
    steps = [step.model_name for step in parse(repository.text("emotion_recognition")).ensemble_scheduling.step]
    assert steps == ["text_tokenizer", "valence", "arousal_dominance", "emotion_classifier"]
    check_repository(repository.folder, models=("valence", "arousal_dominance"))
    repository.export({})
    assert not (repository.folder / EMOTION_ENCODER.name).exists()
    repository.export(SHIPPED)
    assert (repository.folder / EMOTION_ENCODER.name / "1" / "model.onnx").is_file()
    for name in AT_THE_CUT:
        assert repository.text(name) == render(model_config(name, EMBEDDED))


@pytest.mark.parametrize(("first", "second"), [(SHIPPED, {}), ({}, SHIPPED)])
def test_a_repository_has_an_encoder_for_all_profiles_or_for_none(repository, first, second):
    """A server loads every folder, so that one without a graph for its profile would stop it."""
    repository.export(first)
    with pytest.raises(ExportError, match="export one of them to a repository of its own"):
        repository.export(second, TENSORRT)
    assert (repository.folder / EMOTION_ENCODER.name).exists() == bool(first)
    check_repository(repository.folder, models=("emotion_encoder", "valence", "arousal_dominance"))


# The regressors that ship


def exported(model: str) -> Path:
    path = ROOT / "model_repository" / model / "1" / "model.onnx"
    if not path.is_file():
        pytest.skip("the shipped models are not in the repository; run `attune export` first")
    return path


@pytest.mark.parametrize("model", ["emotion_encoder", "valence", "arousal_dominance"])
def test_the_committed_configurations_are_for_the_cut_that_was_found(model):
    graph = exported(model)
    assert read_states(graph.with_name("cut.json")) == SHIPPED
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tensors = {tensor.name: tensor.shape[1:] for tensor in (*session.get_inputs(), *session.get_outputs())}
    declared = specs_at(SHIPPED)[model]
    assert tensors.keys() == {tensor.name for tensor in (*declared.inputs, *declared.outputs)}
    for tensor in (*declared.inputs, *declared.outputs):
        assert [size if isinstance(size, int) else -1 for size in tensors[tensor.name]] == list(tensor.shape)
