"""Saving and loading a regressor: adapters, head and configuration, without the frozen towers.

A folder holds ``adapter.safetensors`` (LoRA's A and B, where the model has adapters), ``head.safetensors``
(everything else that is trained) and ``config.json``. Weights are stored as float16; figures are reported for the
weights as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attune_training.config import PretrainedSources, RegressorConfig
from attune_training.regressor import Regressor, build_regressor

__all__ = [
    "ADAPTER_FILE",
    "CONFIG_FILE",
    "HEAD_FILE",
    "WarmStart",
    "load_regressor",
    "save_regressor",
    "trained_parameters",
    "warm_start",
]

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
CONFIG_FILE = "config.json"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what training changes, by name: the adapters and the head, not the frozen towers."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_regressor(model: Regressor, folder: Path) -> None:
    """Write the files of ``model`` into ``folder``, which is made if need be; those of a former model go."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().cpu().half().contiguous() for name, value in trained_parameters(model).items()}
    adapters = {name: value for name, value in stored.items() if _is_adapter(name)}
    (folder / ADAPTER_FILE).unlink(missing_ok=True)
    if adapters:
        save_file(adapters, folder / ADAPTER_FILE)
    save_file({name: value for name, value in stored.items() if name not in adapters}, folder / HEAD_FILE)
    (folder / CONFIG_FILE).write_text(model.config.to_json(), encoding="utf-8")


def load_regressor(folder: Path, sources: PretrainedSources | None) -> Regressor:
    """Return the saved regressor in evaluation mode; the towers come from ``sources`` (None: random, for tests).

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: a weight is missing, unexpected, or of another shape.
    """
    config = _read_config(folder)
    stored = _read_weights(folder, config)
    model = build_regressor(config, sources)
    _fill(model, stored, folder)
    return model.eval()


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Names of the trained parameters that were copied from a saved model, and of those left as they were."""

    copied: tuple[str, ...]
    fresh: tuple[str, ...]


def warm_start(model: Regressor, folder: Path) -> WarmStart:
    """Copy into ``model`` what a saved regressor has trained, wherever name and shape agree.

    So the valence model and the arousal-dominance model can start from a joint run: they take its adapters, its trunk
    and the output stages of their own dimensions.

    Raises:
        FileNotFoundError: ``folder`` holds no saved regressor.
        ValueError: its audio tower is of another kind, or no matrix between towers and output stages fits.
    """
    config = _read_config(folder)
    if config.audio.kind != model.config.audio.kind:
        raise ValueError(f"{folder} has a {config.audio.kind} tower where the model has {model.config.audio.kind}")
    stored = _read_weights(folder, config)
    wanted = trained_parameters(model)
    copied = [name for name, value in wanted.items() if name in stored and stored[name].shape == value.shape]
    # Biases of one length say nothing; a matrix that fits does.
    if not any(_is_trunk(name) and wanted[name].ndim > 1 for name in copied):
        raise ValueError(f"{folder}: no matrix of the trunk fits the model; the same widths were expected")
    with torch.no_grad():
        for name in copied:
            wanted[name].copy_(stored[name])
    return WarmStart(tuple(copied), tuple(name for name in wanted if name not in copied))


def _read_config(folder: Path) -> RegressorConfig:
    return RegressorConfig.from_json(_file(folder, CONFIG_FILE).read_text(encoding="utf-8"))


def _read_weights(folder: Path, config: RegressorConfig) -> dict[str, Tensor]:
    names = (HEAD_FILE,) if config.lora is None else (HEAD_FILE, ADAPTER_FILE)
    return {name: value for file in names for name, value in load_file(_file(folder, file)).items()}


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} holds no {name}: it is not a saved regressor")
    return folder / name


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _is_trunk(name: str) -> bool:
    """Tell whether a trained parameter lies between the towers and the output stages."""
    return not name.startswith(("audio_tower.", "text_tower.", "stages."))


def _fill(model: Regressor, stored: dict[str, Tensor], folder: Path) -> None:
    """Copy ``stored`` into the trained parameters of ``model``; the names and shapes must match exactly."""
    wanted = trained_parameters(model)
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
