"""Building any model of the paper's tables from its configuration, and its size."""

from __future__ import annotations

from torch import nn

from attune_training.config import ModelConfig, PretrainedSources, RegressorConfig
from attune_training.models.regressor import Regressor, build_regressor
from attune_training.models.unimodal import UnimodalRegressor

__all__ = ["Model", "build_model", "full_checkpoint_bytes", "total_parameters", "trainable_parameters"]

Model = Regressor | UnimodalRegressor

_FLOAT32_BYTES = 4


def build_model(config: ModelConfig, sources: PretrainedSources | None) -> Model:
    """Return a new model of either configuration; `sources` None: towers with random weights.

    Raises:
        ValueError: the pretrained weights are not there or do not fit the configuration.
    """
    if isinstance(config, RegressorConfig):
        return build_regressor(config, sources)
    return UnimodalRegressor(config, sources)


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def total_parameters(model: nn.Module) -> int:
    """Return the number of parameters, the frozen towers' included."""
    return sum(parameter.numel() for parameter in model.parameters())


def full_checkpoint_bytes(model: nn.Module) -> int:
    """Return the size in bytes of a full checkpoint in float32, towers included (section III-C3).

    Compare `attune_training.models.checkpoints.checkpoint_bytes`.
    """
    return _FLOAT32_BYTES * sum(value.numel() for value in model.state_dict().values())
