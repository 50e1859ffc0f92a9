"""Graphs as CUDA's are, on the CPU: what was recorded runs again on the very same tensors, and no Python with it."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class _Recording(TorchDispatchMode):
    """Every operation with the tensors that it read, wrote and returned, and all else as it was at that moment."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(list, list, (args, kwargs or {}))
        made = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, made))
        return made


class RecordedGraphs:
    """Counts what it captures; a replay takes every number of the host as it was when it was captured."""

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, run):
        run()
        with _Recording() as recording:
            run()
        self.captured += 1

        def replay():
            self.replayed += 1
            for func, args, kwargs, made in recording.operations:
                for kept, fresh in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                    # A view, or what was changed in place, is up to date already.
                    if torch.is_tensor(kept) and kept.data_ptr() != fresh.data_ptr():
                        kept.copy_(fresh)

        return replay
