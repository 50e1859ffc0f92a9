"""The rows that PyTorch runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attune_export.bench_encoders.batches import Arrays
from attune_export.bench_encoders.engines import Answers
from attune_export.bench_encoders.graphs import read_cut
from attune_export.bench_encoders.towers import load_models
from attune_export.bench_encoders.ways import EAGER, Device, Row
from attune_training.models.cut import Cut, Head, SharedEncoder
from attune_training.models.regressor import Regressor, merge_adapters

__all__ = ["Eager"]

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Eager:
    """Both regressors as PyTorch modules, in one forward pass."""

    def __init__(self, row: Row, folder: Path, device: Device, threads: int) -> None:
        torch.set_num_threads(threads)
        models = load_models(folder / EAGER)
        if row.merged:
            models = [merge_adapters(model) for model in models]
        self._device = device
        self._dtype = _HALF.get(row.numerics)
        module: nn.Module = _Shared(models, read_cut(folder)) if row.shared else _Apart(models)
        if self._dtype is not None:
            _halve(module, self._dtype)
        module = module.to(device).eval()
        self._run: Any = torch.compile(module, mode="reduce-overhead", dynamic=False) if row.compiled else module

    @torch.inference_mode()
    def __call__(self, inputs: Arrays) -> Answers:
        """Return V, A, D, [B, 3]."""
        given = {name: torch.from_numpy(value).to(self._device) for name, value in inputs.items()}
        half = self._dtype is not None
        context = torch.autocast(self._device, self._dtype) if half else contextlib.nullcontext()
        with context:
            output: Answers = self._run(**given).float().cpu().numpy()
        return output


class _Apart(nn.Module):
    """Both regressors, each from the inputs on."""

    def __init__(self, models: Sequence[Regressor]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return V, A, D, [B, 3]."""
        return torch.cat([model(**inputs) for model in self.models], dim=-1)


class _Shared(nn.Module):
    """Both regressors with what they have in common computed once."""

    def __init__(self, models: Sequence[Regressor], cut: Cut) -> None:
        super().__init__()
        self.encoder = SharedEncoder(models[0], cut)
        self.heads = nn.ModuleList(Head(model, cut) for model in models)
        self._states = tuple(cut.states(models[0]))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return V, A, D, [B, 3]."""
        states = dict(zip(self._states, self.encoder(**inputs), strict=True))
        return torch.cat([head(**inputs, **states) for head in self.heads], dim=-1)


def _halve(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of products and convolutions in `dtype`, in which autocast computes them; the rest stays."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            layer.to(dtype)
