"""Saving and loading a model: adapters, head and configuration, without the frozen towers.

A folder holds `adapter.safetensors` (LoRA's A and B, where the model has adapters), `head.safetensors`
(all other trained parameters) and `config.json`. Weights are stored as float16; metrics are measured on the weights
as stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attune_training.config import ModelConfig, PretrainedSources, RegressorConfig, config_from_json
from attune_training.models.building import Model, build_model
from attune_training.models.regressor import Regressor, build_regressor

__all__ = [
    "ADAPTER_FILE",
    "CONFIG_FILE",
    "HEAD_FILE",
    "WarmStart",
    "checkpoint_bytes",
    "load_model",
    "load_regressor",
    "read_config",
    "save_model",
    "trained_parameters",
    "warm_start",
]

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
CONFIG_FILE = "config.json"

AnyModel = TypeVar("AnyModel", bound=Model)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name: the adapters and the head, not the frozen towers."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_model(model: Model, folder: Path) -> None:
    """Write the files of `model` into `folder`, created if needed; files of a former model are replaced.

    Raises:
        ValueError: a weight is not finite in float16; nothing is written.
    """
    stored = {name: value.detach().cpu().half().contiguous() for name, value in trained_parameters(model).items()}
    _require_finite(stored, "the model", "training has diverged")
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name: value for name, value in stored.items() if _is_adapter(name)}
    (folder / ADAPTER_FILE).unlink(missing_ok=True)
    if adapters:
        save_file(adapters, folder / ADAPTER_FILE)
    save_file({name: value for name, value in stored.items() if name not in adapters}, folder / HEAD_FILE)
    (folder / CONFIG_FILE).write_text(model.config.to_json(), encoding="utf-8")


def checkpoint_bytes(folder: Path) -> int:
    """Return the size in bytes of the files that `save_model` wrote into `folder`."""
    files = (folder / name for name in (ADAPTER_FILE, HEAD_FILE, CONFIG_FILE))
    return sum(file.stat().st_size for file in files if file.is_file())


def load_model(folder: Path, sources: PretrainedSources | None) -> Model:
    """Return the saved model in evaluation mode; the towers come from `sources` (None: random, for tests).

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: a weight is missing, unexpected, of another shape, or not finite.
    """
    return _load_parameters(build_model(read_config(folder), sources), folder)


def load_regressor(folder: Path, sources: PretrainedSources | None) -> Regressor:
    """Return the saved cross-modal regressor, as `load_model` does.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: the model is another one, or a weight is missing, unexpected, of another shape, or not finite.
    """
    config = read_config(folder)
    if not isinstance(config, RegressorConfig):
        raise ValueError(f"{folder} holds a {config.architecture} model; a cross-modal regressor was expected")
    return _load_parameters(build_regressor(config, sources), folder)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Names of the trained parameters that were copied from a saved model, and of those left as they were."""

    copied: tuple[str, ...]
    fresh: tuple[str, ...]


def warm_start(model: Model, folder: Path, parts: Sequence[str] = ()) -> WarmStart:
    """Copy the trained parameters of a saved model into `model` where name and shape agree.

    The valence model and the arousal-dominance model can thus start from a joint run: they take its adapters, its trunk
    and the output stages of their own dimensions. `parts`, names of submodules, restricts what is copied.

    Raises:
        FileNotFoundError: `folder` holds no saved model.
        ValueError: its audio tower is of another kind, no matrix between towers and output stages fits, or a weight is
            not finite.
    """
    config = read_config(folder)
    if config.audio.kind != model.config.audio.kind:
        raise ValueError(f"{folder} has a {config.audio.kind} tower where the model has {model.config.audio.kind}")
    stored = _read_weights(folder, config)
    wanted = trained_parameters(model)
    if parts:
        wanted = {name: value for name, value in wanted.items() if name.split(".")[0] in parts}
    copied = [name for name, value in wanted.items() if name in stored and stored[name].shape == value.shape]
    # Biases of equal length are no evidence of equal hidden sizes; a matrix of equal shape is.
    if not any(_is_trunk(name) and wanted[name].ndim > 1 for name in copied):
        raise ValueError(f"{folder}: no matrix of the trunk fits the model; a model of the same widths was expected")
    with torch.no_grad():
        for name in copied:
            wanted[name].copy_(stored[name])
    return WarmStart(tuple(copied), tuple(name for name in wanted if name not in copied))


def read_config(folder: Path) -> ModelConfig:
    """Return the configuration of the saved model.

    Raises:
        FileNotFoundError: `folder` holds no saved model.
        ValueError: its configuration cannot be read.
    """
    return config_from_json(_file(folder, CONFIG_FILE).read_text(encoding="utf-8"))


def _read_weights(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    adapted = isinstance(config, RegressorConfig) and config.lora is not None
    names = (HEAD_FILE, ADAPTER_FILE) if adapted else (HEAD_FILE,)
    weights = {name: value for file in names for name, value in load_file(_file(folder, file)).items()}
    _require_finite(weights, str(folder), "its training diverged, or the file is damaged")
    return weights


def _require_finite(weights: Mapping[str, Tensor], where: str, meaning: str) -> None:
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{where}: {name} holds values that are not finite numbers; {meaning}")


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} holds no {name}: it is not a saved model")
    return folder / name


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _is_trunk(name: str) -> bool:
    """Return whether a trained parameter lies between the towers and the output stages."""
    return not name.startswith(("audio_tower.", "text_tower.", "stages.", "heads."))


def _load_parameters(model: AnyModel, folder: Path) -> AnyModel:
    """Return `model` with the weights of `folder`, whose names and shapes must match exactly."""
    wanted, stored = trained_parameters(model), _read_weights(folder, model.config)
    missing, unexpected = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or unexpected:
        raise ValueError(f"{folder}: missing weights {missing}, unexpected weights {unexpected}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != stored[name].shape:
                raise ValueError(
                    f"{folder}: {name} has shape {tuple(stored[name].shape)}, expected {tuple(parameter.shape)}"
                )
            parameter.copy_(stored[name])
    model.eval()
    return model
