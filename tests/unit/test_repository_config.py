"""The committed configurations: `pytest tests/unit/test_repository_config.py`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from attune_client.protocol.models import MODELS
from attune_export.repository_config import DEPLOYMENTS, Kind, Profile, config_path, model_config, parse, render

REPOSITORY = Path(__file__).parents[2] / "model_repository"
EVERY_CONFIG = [(name, profile) for name in MODELS for profile in Profile]


@pytest.mark.parametrize(("name", "profile"), EVERY_CONFIG)
def test_committed_configuration_is_what_the_specification_writes(name, profile):
    committed = (REPOSITORY / config_path(name, profile)).read_text()
    assert committed == render(model_config(name, profile))


@pytest.mark.parametrize(("name", "profile"), EVERY_CONFIG)
def test_parsed_back_it_declares_the_protocols_tensors(name, profile):
    config = parse((REPOSITORY / config_path(name, profile)).read_text())
    spec = MODELS[name]
    assert config.name == name
    assert config.max_batch_size == spec.max_batch_size
    assert config.model_transaction_policy.decoupled == spec.decoupled
    for declared, configured in ((spec.inputs, config.input), (spec.outputs, config.output)):
        assert [(t.name, tuple(t.dims)) for t in configured] == [(t.name, t.shape) for t in declared]
        names = {"FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}
        assert [pb.DataType.Name(t.data_type) for t in configured] == [names[t.dtype.value] for t in declared]
    assert [t.optional for t in config.input] == [t.optional for t in spec.inputs]


def test_every_ensemble_tensor_has_one_source():
    config = model_config("emotion_recognition", Profile.EMBEDDED)
    made = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= made, step.model_name
        assert not set(step.output_map.values()) & made, step.model_name
        made |= set(step.output_map.values())
    assert {tensor.name for tensor in config.output} <= made


def test_embedded_asks_for_no_gpu_and_the_others_do():
    for name in MODELS:
        assert not any(
            g.kind == pb.ModelInstanceGroup.KIND_GPU for g in model_config(name, Profile.EMBEDDED).instance_group
        )
    assert model_config("valence", Profile.GPU).instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


def test_tensorrt_replaces_the_graphs_of_regressors_and_classifier():
    engines = {n for n in MODELS if model_config(n, Profile.TENSORRT).backend == "tensorrt"}
    assert engines == {"valence", "arousal_dominance", "emotion_classifier"}


def test_a_broken_configuration_is_refused():
    with pytest.raises(text_format.ParseError):
        parse("name: 'x' max_batch: 3")


@pytest.mark.parametrize("name", [name for name, d in DEPLOYMENTS.items() if d.kind is Kind.PYTHON])
def test_adapters_stay_thin(name):
    """Under 40 statement lines, as the house rule says: logic belongs in a package."""
    source = (REPOSITORY / name / "1" / "model.py").read_text()
    lines = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for line in range(node.lineno, (node.lineno if hasattr(node, "body") else node.end_lineno) + 1)
    }
    assert len(lines) < 40


PYTHON_MODELS = [name for name, d in DEPLOYMENTS.items() if d.kind is Kind.PYTHON]


def places(name: str, profile: Profile) -> tuple[int, int]:
    parameters = model_config(name, profile).parameters
    return int(parameters["max_concurrent"].string_value), int(parameters["max_waiting"].string_value)


@pytest.mark.parametrize("profile", Profile)
def test_every_model_that_may_keep_a_client_waiting_is_bounded(profile):
    for name in PYTHON_MODELS:
        if name != "text_tokenizer":  # answers in milliseconds
            at_work, waiting = places(name, profile)
            assert at_work >= 1, name
            assert waiting >= 0, name


@pytest.mark.parametrize("profile", Profile)
def test_the_engine_can_say_that_it_is_full(profile):
    """Before it can, as many as it takes have to come through to it, and one more."""
    parameters = model_config("music_generator", profile).parameters
    full = int(parameters["slots"].string_value) + int(parameters["queue"].string_value)
    assert places("music_therapy", profile)[0] > full
    assert sum(places("music_generator", profile)) >= places("music_therapy", profile)[0]


@pytest.mark.parametrize("profile", Profile)
def test_the_transcriber_takes_what_the_models_in_front_of_it_send(profile):
    sent = places("music_therapy", profile)[0] + places("speech_emotion", profile)[0]
    assert sum(places("speech_to_text", profile)) == sent


@pytest.mark.parametrize("name", [name for name, d in DEPLOYMENTS.items() if d.kind is Kind.ONNX])
def test_every_graph_runs_before_it_is_served(name):
    (warm_up,) = model_config(name, Profile.GPU).model_warmup
    assert set(warm_up.inputs) == {tensor.name for tensor in MODELS[name].inputs}
    for tensor in MODELS[name].inputs:
        assert len(warm_up.inputs[tensor.name].dims) == len(tensor.shape)
        assert all(size > 0 for size in warm_up.inputs[tensor.name].dims)
