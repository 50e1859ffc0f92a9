"""Running a step: as it is on a CPU, as a captured CUDA graph on a GPU.

A graph is captured for each number of slots and each bucket of context the first time it is needed; after that a step
is one launch.
"""

from __future__ import annotations

import torch

from attune_ensemble.musicgen.state import BatchState

__all__ = ["CONTEXT_BUCKET", "Stepper"]

CONTEXT_BUCKET = 128
"""Context is rounded up to a multiple of this many positions, so that few graphs serve all lengths."""


class Stepper:
    """Steps a batch; with `graphs` (the default where the batch is on a GPU) by CUDA graphs."""

    def __init__(self, state: BatchState, *, graphs: bool | None = None) -> None:
        self._state = state
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._uses_graphs = state.position.is_cuda if graphs is None else graphs

    def step(self, slots: int, used: int) -> None:
        """Move the first `slots` slots on by one position; `used` is more than the largest of their positions."""
        if not self._uses_graphs:
            self._state.step(slots, used)
            return
        bucket = min(self._state.positions, -(-used // CONTEXT_BUCKET) * CONTEXT_BUCKET)
        key = (slots, bucket)
        if key not in self._graphs:
            self._graphs[key] = self._captured(slots, bucket)
        self._graphs[key].replay()

    def _captured(self, slots: int, used: int) -> torch.cuda.CUDAGraph:
        """Capture one step. Warming up runs it, so positions are put back; what it wrote is written again."""
        position = self._state.position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._state.step(slots, used)
                self._state.position.copy_(position)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._state.step(slots, used)
        return graph
