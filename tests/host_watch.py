"""What an operation on a device must not do: touch a tensor of the host."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
"""A device without memory: shapes and devices are checked, nothing is computed."""


class HostWatch(TorchDispatchMode):
    """Fails where an operation takes, or makes, a tensor on the CPU; `dimensions`: allowed up to so many, such as 0."""

    def __init__(self, *, dimensions: int = -1) -> None:
        super().__init__()
        self.seen, self._dimensions = 0, dimensions

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, made)):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.ndim > self._dimensions:
                raise AssertionError(f"{func} touches a tensor {list(value.shape)} on the CPU")
        self.seen += 1
        return made
