"""The committed configurations: `pytest tests/unit/test_repository_config.py`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from attune_client.protocol.models import MODELS
from attune_client.protocol.profiles import EMBEDDED, GPU, PROFILES, Profile, config_path
from attune_export.cut import SHIPPED, specs_at
from attune_export.models.registry import SERVED_MODELS
from attune_export.repository_config import model_config, parse, render
from attune_export.served_model import Kind

REPOSITORY = Path(__file__).parents[2] / "model_repository"
SPECS = MODELS | specs_at(SHIPPED)
"""The models with the tensors that they have where the shipped regressors are cut."""
EVERY_CONFIG = [(name, profile) for name in MODELS for profile in PROFILES.values()]


@pytest.mark.parametrize(("name", "profile"), EVERY_CONFIG)
def test_committed_configuration_is_what_the_specification_writes(name, profile):
    committed = (REPOSITORY / config_path(name, profile)).read_text()
    assert committed == render(model_config(name, profile))


@pytest.mark.parametrize(("name", "profile"), EVERY_CONFIG)
def test_parsed_back_it_declares_the_protocols_tensors(name, profile):
    config = parse((REPOSITORY / config_path(name, profile)).read_text())
    spec = SPECS[name]
    assert config.name == name
    assert config.max_batch_size == spec.max_batch_size
    assert config.model_transaction_policy.decoupled == spec.decoupled
    for declared, configured in ((spec.inputs, config.input), (spec.outputs, config.output)):
        assert [(t.name, tuple(t.dims)) for t in configured] == [(t.name, t.shape) for t in declared]
        names = {"FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}
        assert [pb.DataType.Name(t.data_type) for t in configured] == [names[t.dtype.value] for t in declared]
    assert [t.optional for t in config.input] == [t.optional for t in spec.inputs]


def test_every_ensemble_tensor_has_one_source():
    config = model_config("emotion_recognition", EMBEDDED)
    made = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= made, step.model_name
        assert not set(step.output_map.values()) & made, step.model_name
        made |= set(step.output_map.values())
    assert {tensor.name for tensor in config.output} <= made


@dataclass(frozen=True)
class Served:
    """How a model is to be served, written down here and nowhere derived: backend, file, kind, parameters, delay in us.

    `platform` is what Triton wants beside the backend of an engine; `delay` None means no dynamic batcher.
    """

    backend: str
    file: str
    kind: str = "KIND_CPU"
    parameters: Mapping[str, str] = field(default_factory=dict)
    delay: int | None = None
    platform: str = ""


def python(kind: str = "KIND_CPU", **parameters: str) -> Served:
    return Served("python", "model.py", kind, parameters)


def places(at_work: str, waiting: str) -> dict[str, str]:
    return {"max_concurrent": at_work, "max_waiting": waiting}


def whisper(kind: str, waiting: str, **parameters: str) -> Served:
    decoder = "soundfile+pyav"
    return python(kind, weights="whisper", decoder=decoder, **places("1", waiting), **parameters)


def graph(file: str, kind: str, delay: int, **parameters: str) -> Served:
    return Served("onnxruntime", file, kind, parameters, delay)


def engine(delay: int) -> Served:
    return Served("tensorrt", "model.plan", "KIND_GPU", {}, delay, "tensorrt_plan")


def musicgen(weights: str) -> Served:
    return python(
        "KIND_GPU",
        weights=weights,
        engine="musicgen",
        chunk_s="1.0",
        numerics="bfloat16",
        slots="16",
        queue="64",
        ahead_bytes="33554432",
        **places("112", "0"),
    )


def bart(weights: str) -> Served:
    settings = {"prompt_writer": "bart", "compute_type": "float16", "threads": "4"}
    return python("KIND_GPU", weights=weights, **settings, **PROMPT, **places("16", "64"))


ONE_THREAD = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
GIVES_BACK = {"memory.enable_memory_arena_shrinkage": "cpu:0"}
PUBLIC = places("16", "16")
CHOICE = {"emotion_choice": "vad_and_words", "segments_per_call": "4"}
CHOICE_ON_GPU = CHOICE | {"segments_per_call": "16"}
AHEAD = {"ahead_bytes": "8388608"}
PROMPT = {"calls": "text_tokenizer unless music_spec,sentence_encoder unless music_spec"}
SPEECH = {"calls": "speech_to_text,emotion_recognition,emotion_classifier,text_tokenizer,sentence_encoder"}
A_WISH = "emotion vad text music_spec"
THERAPY = {
    "calls": f"speech_to_text unless {A_WISH},emotion_recognition unless {A_WISH},"
    f"emotion_classifier unless emotion text music_spec,text_tokenizer unless {A_WISH},"
    f"sentence_encoder unless {A_WISH},music_prompt,music_generator",
    "calls_streaming": "music_generator",
}
ENSEMBLE = Served("", "", "")

EXPECTED: dict[str, dict[str, Served]] = {
    "config.pbtxt": {
        "speech_to_text": whisper("KIND_CPU", "67", compute_type="int8", beam_size="1", threads="2"),
        "text_tokenizer": python(weights="tokenizers"),
        "emotion_encoder": graph("model.onnx", "KIND_CPU", 2000, **ONE_THREAD),
        "valence": graph("model.onnx", "KIND_CPU", 0, **ONE_THREAD),
        "arousal_dominance": graph("model.onnx", "KIND_CPU", 0, **ONE_THREAD),
        "emotion_classifier": graph("model.onnx", "KIND_CPU", 0, **ONE_THREAD),
        "emotion_recognition": ENSEMBLE,
        "sentence_encoder": graph("model.onnx", "KIND_CPU", 0, **ONE_THREAD, **GIVES_BACK),
        "music_prompt": python(weights="knowledge", prompt_writer="template", **PROMPT, **places("16", "64")),
        "music_generator": python(
            weights="musicgen", engine="composer", chunk_s="1.0", slots="4", queue="8", **AHEAD, **places("80", "16")
        ),
        "speech_emotion": python(weights="choice", **SPEECH, **CHOICE, **places("4", "28")),
        "music_therapy": python(weights="choice", **THERAPY, **CHOICE, **AHEAD, **places("64", "16")),
    },
    "configs/gpu.pbtxt": {
        "speech_to_text": whisper("KIND_GPU", "111", compute_type="float16", beam_size="5", threads="4"),
        "text_tokenizer": python(weights="tokenizers.gpu"),
        "emotion_encoder": graph("model.gpu.onnx", "KIND_GPU", 2000),
        "valence": graph("model.gpu.onnx", "KIND_GPU", 0),
        "arousal_dominance": graph("model.gpu.onnx", "KIND_GPU", 0),
        "emotion_classifier": graph("model.gpu.onnx", "KIND_GPU", 0),
        "emotion_recognition": ENSEMBLE,
        "sentence_encoder": graph("model.gpu.onnx", "KIND_GPU", 0),
        "music_prompt": bart("knowledge.gpu"),
        "music_generator": musicgen("musicgen.gpu"),
        "speech_emotion": python(weights="choice.gpu", **SPEECH, **CHOICE_ON_GPU, **PUBLIC),
        "music_therapy": python(weights="choice.gpu", **THERAPY, **CHOICE_ON_GPU, **AHEAD, **places("96", "16")),
    },
    "configs/tensorrt.pbtxt": {
        "speech_to_text": whisper("KIND_GPU", "111", compute_type="float16", beam_size="5", threads="4"),
        "text_tokenizer": python(weights="tokenizers.tensorrt"),
        "emotion_encoder": engine(2000),
        "valence": engine(0),
        "arousal_dominance": engine(0),
        "emotion_classifier": engine(0),
        "emotion_recognition": ENSEMBLE,
        "sentence_encoder": graph("model.tensorrt.onnx", "KIND_GPU", 0),
        "music_prompt": bart("knowledge.tensorrt"),
        "music_generator": musicgen("musicgen.tensorrt"),
        "speech_emotion": python(weights="choice.tensorrt", **SPEECH, **CHOICE_ON_GPU, **PUBLIC),
        "music_therapy": python(weights="choice.tensorrt", **THERAPY, **CHOICE_ON_GPU, **AHEAD, **places("96", "16")),
    },
}
"""Every model in every profile. A new parameter is written down here too, so that no profile gets it unseen."""


def served(file: Path) -> Served:
    """What a committed configuration says, read as the server reads it."""
    config = text_format.Parse(file.read_text(), pb.ModelConfig())
    if config.platform == "ensemble":
        assert not config.instance_group
        return ENSEMBLE
    [group] = config.instance_group
    assert group.count == 1
    return Served(
        config.backend,
        config.default_model_filename,
        pb.ModelInstanceGroup.Kind.Name(group.kind),
        {key: value.string_value for key, value in config.parameters.items()},
        config.dynamic_batching.max_queue_delay_microseconds if config.HasField("dynamic_batching") else None,
        config.platform,
    )


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, models in EXPECTED.items() for name in models])
def test_every_committed_configuration_serves_as_it_is_written_down_here(file, name):
    assert served(REPOSITORY / name / file) == EXPECTED[file][name]


def test_every_declared_model_is_served_in_the_order_of_the_pipeline():
    assert list(SERVED_MODELS) == list(MODELS)
    assert all(model.spec is MODELS[name] for name, model in SERVED_MODELS.items())


def test_no_model_and_no_profile_is_left_out():
    """Of the folders as they lie there, for a server loads all of them."""
    folders = {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")}
    files = {str(path.relative_to(path.parents[1])) for path in REPOSITORY.glob("*/configs/*.pbtxt")}
    assert all(models.keys() == folders for models in EXPECTED.values())
    assert files == EXPECTED.keys() - {"config.pbtxt"}


@pytest.mark.parametrize("name", EXPECTED["config.pbtxt"])
def test_a_model_has_the_same_tensors_in_every_profile(name):
    """So that a client, and the ensemble, need not know which one is served."""
    shapes = []
    for file in EXPECTED:
        config = text_format.Parse((REPOSITORY / name / file).read_text(), pb.ModelConfig())
        tensors = [(list(config.input), list(config.output)), config.model_transaction_policy.decoupled]
        shapes.append((config.name, config.max_batch_size, tensors, list(config.ensemble_scheduling.step)))
    assert shapes[0][0] == name
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_broken_configuration_is_refused():
    with pytest.raises(text_format.ParseError):
        parse("name: 'x' max_batch: 3")


@pytest.mark.parametrize("name", [name for name, model in SERVED_MODELS.items() if model.kind is Kind.PYTHON])
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


PYTHON_MODELS = [name for name, model in SERVED_MODELS.items() if model.kind is Kind.PYTHON]


def places(name: str, profile: Profile) -> tuple[int, int]:
    parameters = model_config(name, profile).parameters
    return int(parameters["max_concurrent"].string_value), int(parameters["max_waiting"].string_value)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_every_model_that_may_keep_a_client_waiting_is_bounded(profile):
    for name in PYTHON_MODELS:
        if name != "text_tokenizer":  # answers in milliseconds
            at_work, waiting = places(name, profile)
            assert at_work >= 1, name
            assert waiting >= 0, name


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_the_engine_can_say_that_it_is_full(profile):
    """Before it can, as many as it takes have to come through to it, and one more."""
    parameters = model_config("music_generator", profile).parameters
    full = int(parameters["slots"].string_value) + int(parameters["queue"].string_value)
    assert places("music_therapy", profile)[0] > full
    assert sum(places("music_generator", profile)) >= places("music_therapy", profile)[0]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_the_transcriber_takes_what_the_models_in_front_of_it_send(profile):
    sent = places("music_therapy", profile)[0] + places("speech_emotion", profile)[0]
    assert sum(places("speech_to_text", profile)) == sent


@pytest.mark.parametrize("name", [name for name, model in SERVED_MODELS.items() if model.kind is Kind.ONNX])
def test_every_graph_runs_before_it_is_served(name):
    (warm_up,) = model_config(name, GPU).model_warmup
    assert set(warm_up.inputs) == {tensor.name for tensor in SPECS[name].inputs}
    for tensor in SPECS[name].inputs:
        assert len(warm_up.inputs[tensor.name].dims) == len(tensor.shape)
        assert all(size > 0 for size in warm_up.inputs[tensor.name].dims)
