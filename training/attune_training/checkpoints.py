"""Saving and loading a regressor: adapters, head and configuration, without the frozen towers.

A folder holds ``adapter.safetensors`` (LoRA's A and B), ``head.safetensors`` (everything else that is trained) and
``config.json``. Weights are stored as float16; figures are reported for the weights as stored.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attune_training.config import PretrainedSources, RegressorConfig
from attune_training.regressor import Regressor, build_regressor

__all__ = ["ADAPTER_FILE", "CONFIG_FILE", "HEAD_FILE", "load_regressor", "save_regressor", "trained_parameters"]

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
CONFIG_FILE = "config.json"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what training changes, by name: the adapters and the head, not the frozen towers."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_regressor(model: Regressor, folder: Path) -> None:
    """Write the three files of ``model`` into ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().cpu().half().contiguous() for name, value in trained_parameters(model).items()}
    save_file({name: value for name, value in stored.items() if _is_adapter(name)}, folder / ADAPTER_FILE)
    save_file({name: value for name, value in stored.items() if not _is_adapter(name)}, folder / HEAD_FILE)
    (folder / CONFIG_FILE).write_text(model.config.to_json(), encoding="utf-8")


def load_regressor(folder: Path, sources: PretrainedSources | None) -> Regressor:
    """Return the saved regressor in evaluation mode; the towers come from ``sources`` (None: random, for tests).

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: a weight is missing, unexpected, or of another shape.
    """
    for name in (CONFIG_FILE, ADAPTER_FILE, HEAD_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: it is not a saved regressor")
    config = RegressorConfig.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    model = build_regressor(config, sources)
    _fill(model, load_file(folder / ADAPTER_FILE) | load_file(folder / HEAD_FILE), folder)
    return model.eval()


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


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
