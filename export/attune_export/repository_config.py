"""The configuration of every served model in every profile, generated from `attune_export.models`.

`config.pbtxt` is for the profile `embedded`, `configs/<profile>.pbtxt` for the others, selected by the server's
`--model-config-name`. The files are committed; a test compares them with the output of this module:

    python -m attune_export.repository_config
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from attune_client.protocol import models as protocol
from attune_client.protocol.profiles import ENGINE_FILE, MODEL_FILE, PROFILES, Profile, config_path, exported_name
from attune_client.protocol.tensors import DType, ModelSpec, TensorSpec
from attune_export.cut import SHIPPED, States, specs_at
from attune_export.models.registry import SERVED_MODELS
from attune_export.served_model import Kind, ServedModel, Settings

__all__ = ["model_config", "parse", "render", "write_repository"]

HEADER = "# Written by `python -m attune_export.repository_config`; change it there.\n"

_DTYPES = {
    DType.FP32: pb.TYPE_FP32,
    DType.INT32: pb.TYPE_INT32,
    DType.INT64: pb.TYPE_INT64,
    DType.BYTES: pb.TYPE_STRING,
}


def model_config(name: str, profile: Profile, states: States = SHIPPED) -> pb.ModelConfig:
    """Return the configuration of one model in one profile, for regressors that are cut at `states`."""
    model = SERVED_MODELS[name]
    model = replace(model, spec=specs_at(states).get(name, model.spec))
    config = pb.ModelConfig(name=name, max_batch_size=model.spec.max_batch_size)
    config.input.extend(_input(tensor) for tensor in model.spec.inputs)
    config.output.extend(_output(tensor) for tensor in model.spec.outputs)
    if model.spec.decoupled:
        config.model_transaction_policy.decoupled = True
    if model.kind is Kind.ENSEMBLE:
        config.platform = "ensemble"
        config.ensemble_scheduling.step.extend(_step(step, model.spec) for step in model.spec.steps)
        return config
    settings = model.settings_in(profile)
    _set_backend(config, model.kind, settings, profile)
    _set_instances(config, settings)
    if model.max_queue_delay_us is not None:
        # Requests that the encoder has run together arrive together.
        follows = any(tensor.name in states for tensor in model.spec.inputs)
        config.dynamic_batching.max_queue_delay_microseconds = 0 if follows else model.max_queue_delay_us
    for key, value in _parameters(model, settings, profile).items():
        config.parameters[key].string_value = value
    if model.kind is Kind.ONNX:
        config.model_warmup.append(_warm_up(model.spec))
    return config


def _parameters(model: ServedModel, settings: Settings, profile: Profile) -> dict[str, str]:
    parameters = dict(settings.parameters)
    if model.weights:
        parameters["weights"] = exported_name(model.weights, profile)
    if settings.places is not None:
        parameters |= {name: str(value) for name, value in asdict(settings.places).items()}
    if model.spec.calls:
        # Whoever needs one of these is told so while it is away.
        parameters["calls"] = ",".join(map(str, model.spec.calls))
    if model.spec.calls_streaming:
        parameters["calls_streaming"] = ",".join(map(str, model.spec.calls_streaming))
    return parameters


# One second of silence, and a short text of zeros: a token of every vocabulary, and all of it masked.
_WARM_UP_SIZES = {"waveform": protocol.SPEECH_SAMPLE_RATE, "audio_state": 50} | dict.fromkeys(
    ("input_ids", "attention_mask", "text_state", "sentence_ids", "sentence_mask"), 16
)


def _warm_up(spec: ModelSpec) -> pb.ModelWarmup:
    """Return a warm-up request, so that a graph that fails, or whose outputs are not finite, is never served."""
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


def _step(model: ModelSpec, ensemble: ModelSpec) -> pb.ModelEnsembling.Step:
    """Return the step that calls `model`; outputs that neither another step nor the ensemble takes are left out."""
    taken = {tensor.name for tensor in ensemble.outputs}
    taken |= {tensor.name for step in ensemble.steps for tensor in step.inputs}
    return pb.ModelEnsembling.Step(
        model_name=model.name,
        model_version=-1,
        input_map={tensor.name: tensor.name for tensor in model.inputs},
        output_map={tensor.name: tensor.name for tensor in model.outputs if tensor.name in taken},
    )


def _set_backend(config: pb.ModelConfig, kind: Kind, settings: Settings, profile: Profile) -> None:
    if kind is Kind.PYTHON:
        config.backend, config.default_model_filename = "python", "model.py"
    elif settings.tensorrt:
        config.backend, config.platform, config.default_model_filename = "tensorrt", "tensorrt_plan", ENGINE_FILE
    else:
        config.backend, config.default_model_filename = "onnxruntime", exported_name(MODEL_FILE, profile)


def _set_instances(config: pb.ModelConfig, settings: Settings) -> None:
    kind = pb.ModelInstanceGroup.KIND_GPU if settings.on_gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.append(pb.ModelInstanceGroup(count=settings.instances, kind=kind))


def render(config: pb.ModelConfig) -> str:
    """Return the text of a config.pbtxt."""
    text: str = text_format.MessageToString(config)
    return HEADER + text


def parse(text: str) -> pb.ModelConfig:
    """Return the configuration of a config.pbtxt.

    Raises:
        text_format.ParseError: `text` is not a configuration.
    """
    return text_format.Parse(text, pb.ModelConfig())


def write_repository(repository: Path) -> list[Path]:
    """Write every model's configuration in every profile; returns the paths."""
    written = []
    for name in SERVED_MODELS:
        for profile in PROFILES.values():
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
