"""The configuration of every served model, in every profile, written from typed specifications.

`config.pbtxt` is the `embedded` profile; `configs/<profile>.pbtxt` the others, chosen by the server's
`--model-config-name`. They are committed; a test holds them equal to what this module writes:

    python -m attune_export.repository_config
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

import click
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from attune_client.protocol import models as protocol
from attune_client.protocol.models import MODELS
from attune_client.protocol.profiles import (
    ENGINE_FILE,
    KNOWLEDGE_DIR,
    MODEL_FILE,
    MUSICGEN_DIR,
    TOKENIZER_FILE,
    WHISPER_DIR,
    Profile,
    exported_name,
)
from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec

__all__ = ["Profile", "config_path", "model_config", "parse", "render", "write_repository"]

HEADER = "# Written by `python -m attune_export.repository_config`; change it there.\n"


class Kind(StrEnum):
    """What a model runs on."""

    PYTHON = "python"
    ONNX = "onnxruntime"
    ENSEMBLE = "ensemble"


_DTYPES = {
    DType.FP32: pb.TYPE_FP32,
    DType.INT32: pb.TYPE_INT32,
    DType.INT64: pb.TYPE_INT64,
    DType.BYTES: pb.TYPE_STRING,
}


@dataclass(frozen=True, slots=True)
class Places:
    """How many requests of a Python model are at work at once, and how many more may wait for their turn."""

    max_concurrent: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """How one model is run, beside what its `ModelSpec` already says.

    `instances` are processes in `embedded`; `on_gpu` gives the model the GPU in the other profiles, and
    `tensorrt` an engine in place of the ONNX graph in the profile of that name. `gpu_parameters` take the
    place of `parameters` where the model runs on the GPU. `weights` is what `attune export` places for a Python model,
    by the name that it has in `embedded`; the parameter of that name holds the profile's own. `places` are the requests
    that it takes on before it refuses; `gpu_places` those of a model that depends on how much the GPU can do.
    """

    kind: Kind
    instances: int = 1
    on_gpu: bool = False
    tensorrt: bool = False
    max_queue_delay_us: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    gpu_parameters: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    places: Places | None = None
    gpu_places: Places | None = None


# One intra-op thread: the two regressors run side by side, each on a core of its own.
_ONE_THREAD = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}

# Sixteen slots of MusicGen small take 5 GB of keys and values.
_MUSICGEN = {
    "engine": "musicgen",
    "chunk_s": "1.0",
    "numerics": "bfloat16",
    "slots": "16",
    "queue": "64",
}

# Where clients come in, requests are bounded: what is one too many is refused at once, and told when to try again.
# Whoever speaks or listens is at work for seconds to minutes, so few may wait; a description takes milliseconds.
_PUBLIC, _BRIEF = Places(16, 16), Places(16, 64)
# On the GPU the engine bounds itself, to its slots and its queue (80). More than that are let through to it, so that it
# is the engine that refuses, and nobody waits in front of its queue unseen.
_MUSICGEN_PUBLIC, _MUSICGEN_ENGINE = Places(96, 16), Places(112, 0)
# One transcriber: as many may wait as the models in front of it have at work. Models that answer in milliseconds are
# not bounded themselves: a bound on Triton's own queue makes its batcher poll every half second.
_TRANSCRIBER, _GPU_TRANSCRIBER = Places(1, 31), Places(1, 111)

# "soundfile" never starts PyAV, and then reads neither M4A, AMR nor WebM.
_DECODER = {"decoder": "soundfile+pyav"}

DEPLOYMENTS: dict[str, Deployment] = {
    "speech_to_text": Deployment(
        Kind.PYTHON,
        on_gpu=True,
        parameters={"compute_type": "int8", "beam_size": "1", "threads": "2", **_DECODER},
        gpu_parameters={"compute_type": "float16", "beam_size": "5", "threads": "4", **_DECODER},
        weights=WHISPER_DIR,
        places=_TRANSCRIBER,
        gpu_places=_GPU_TRANSCRIBER,
    ),
    "text_tokenizer": Deployment(Kind.PYTHON, weights=TOKENIZER_FILE),
    "valence": Deployment(Kind.ONNX, on_gpu=True, tensorrt=True, max_queue_delay_us=2000, parameters=_ONE_THREAD),
    "arousal_dominance": Deployment(
        Kind.ONNX, on_gpu=True, tensorrt=True, max_queue_delay_us=2000, parameters=_ONE_THREAD
    ),
    "emotion_classifier": Deployment(
        Kind.ONNX, on_gpu=True, tensorrt=True, max_queue_delay_us=0, parameters=_ONE_THREAD
    ),
    "emotion_recognition": Deployment(Kind.ENSEMBLE),
    "sentence_encoder": Deployment(Kind.ONNX, on_gpu=True, max_queue_delay_us=0, parameters=_ONE_THREAD),
    "music_prompt": Deployment(Kind.PYTHON, weights=KNOWLEDGE_DIR, places=_BRIEF),
    "music_generator": Deployment(
        Kind.PYTHON,
        on_gpu=True,
        # Four slots of MusicGen, where it is exported, take up to 2.4 GB.
        parameters={"engine": "composer", "chunk_s": "1.0", "slots": "4", "queue": "8"},
        gpu_parameters=_MUSICGEN,
        weights=MUSICGEN_DIR,
        places=_PUBLIC,
        gpu_places=_MUSICGEN_ENGINE,
    ),
    "speech_emotion": Deployment(Kind.PYTHON, places=_PUBLIC),
    "music_therapy": Deployment(Kind.PYTHON, places=_PUBLIC, gpu_places=_MUSICGEN_PUBLIC),
}

STEPS = (
    protocol.TEXT_TOKENIZER,
    protocol.VALENCE_MODEL,
    protocol.AROUSAL_DOMINANCE_MODEL,
    protocol.EMOTION_CLASSIFIER,
)
"""The ensemble: tokenizer, then the two regressors side by side, then the classifier.

A tensor keeps its name all the way through, so the maps follow from the models' own declarations.
"""


def model_config(name: str, profile: Profile) -> pb.ModelConfig:
    """The configuration of one model in one profile, as the server's own message."""
    spec, deployment = MODELS[name], DEPLOYMENTS[name]
    config = pb.ModelConfig(name=name, max_batch_size=spec.max_batch_size)
    config.input.extend(_input(tensor) for tensor in spec.inputs)
    config.output.extend(_output(tensor) for tensor in spec.outputs)
    if spec.decoupled:
        config.model_transaction_policy.decoupled = True
    if deployment.kind is Kind.ENSEMBLE:
        config.platform = "ensemble"
        config.ensemble_scheduling.step.extend(_step(step) for step in STEPS)
        return config
    _set_backend(config, deployment, profile)
    _set_instances(config, deployment, profile)
    if deployment.max_queue_delay_us is not None:
        config.dynamic_batching.max_queue_delay_microseconds = deployment.max_queue_delay_us
    parameters = dict(deployment.gpu_parameters if _runs_on_gpu(deployment, profile) else deployment.parameters)
    if deployment.weights:
        parameters["weights"] = exported_name(deployment.weights, profile)
    for key, value in (parameters | _places(deployment, profile)).items():
        config.parameters[key].string_value = value
    if deployment.kind is Kind.ONNX:
        config.model_warmup.append(_warm_up(spec))
    return config


def _places(deployment: Deployment, profile: Profile) -> dict[str, str]:
    embedded = profile is Profile.EMBEDDED or deployment.gpu_places is None
    places = deployment.places if embedded else deployment.gpu_places
    return {name: str(value) for name, value in asdict(places).items()} if places else {}


# A second of silence and as few words as there may be.
_WARM_UP_SIZES = {"waveform": protocol.SPEECH_SAMPLE_RATE, "input_ids": 16, "attention_mask": 16}


def _warm_up(spec: ModelSpec) -> pb.ModelWarmup:
    """One request before the model is ready: a graph that cannot run, or whose numbers are none, is never served."""
    warm_up = pb.ModelWarmup(name="silence", batch_size=1)
    for tensor in spec.inputs:
        dims = [_WARM_UP_SIZES[tensor.name] if size == -1 else size for size in tensor.shape]
        warm_up.inputs[tensor.name].CopyFrom(
            pb.ModelWarmup.Input(data_type=_DTYPES[tensor.dtype], dims=dims, zero_data=True)
        )
    return warm_up


def _input(tensor: TensorSpec) -> pb.ModelInput:
    return pb.ModelInput(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=tensor.shape, optional=tensor.optional)


def _output(tensor: TensorSpec) -> pb.ModelOutput:
    return pb.ModelOutput(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=tensor.shape)


def _step(model: ModelSpec) -> pb.ModelEnsembling.Step:
    return pb.ModelEnsembling.Step(
        model_name=model.name,
        model_version=-1,
        input_map={tensor.name: tensor.name for tensor in model.inputs},
        output_map={tensor.name: tensor.name for tensor in model.outputs},
    )


def _set_backend(config: pb.ModelConfig, deployment: Deployment, profile: Profile) -> None:
    if deployment.kind is Kind.PYTHON:
        config.backend, config.default_model_filename = "python", "model.py"
    elif deployment.tensorrt and profile is Profile.TENSORRT:
        config.backend, config.platform, config.default_model_filename = "tensorrt", "tensorrt_plan", ENGINE_FILE
    else:
        config.backend, config.default_model_filename = "onnxruntime", exported_name(MODEL_FILE, profile)


def _runs_on_gpu(deployment: Deployment, profile: Profile) -> bool:
    return deployment.on_gpu and profile is not Profile.EMBEDDED


def _set_instances(config: pb.ModelConfig, deployment: Deployment, profile: Profile) -> None:
    on_gpu = _runs_on_gpu(deployment, profile)
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.append(pb.ModelInstanceGroup(count=deployment.instances, kind=kind))


def render(config: pb.ModelConfig) -> str:
    """The configuration as the text of a config.pbtxt."""
    text: str = text_format.MessageToString(config)
    return HEADER + text


def parse(text: str) -> pb.ModelConfig:
    """The configuration that a config.pbtxt holds; raises `text_format.ParseError` if it is not one."""
    return text_format.Parse(text, pb.ModelConfig())


def config_path(name: str, profile: Profile) -> Path:
    """Where a model's configuration lies, relative to the model repository."""
    if profile is Profile.EMBEDDED:
        return Path(name) / "config.pbtxt"
    return Path(name) / "configs" / f"{profile.value}.pbtxt"


def write_repository(repository: Path) -> list[Path]:
    """Write every model's configuration in every profile; returns what was written."""
    written = []
    for name in MODELS:
        for profile in Profile:
            path = repository / config_path(name, profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(model_config(name, profile)))
            written.append(path)
    return written


@click.command()
@click.option("--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True)
def main(repository: Path) -> None:
    """Write the configurations of all models and profiles."""
    for path in write_repository(repository):
        click.echo(path)


if __name__ == "__main__":
    main()
