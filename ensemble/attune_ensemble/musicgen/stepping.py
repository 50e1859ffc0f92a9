"""Running a step: as it is on a CPU, as a captured CUDA graph on a GPU.

A graph is captured for each number of slots and each bucket of context the first time it is needed; after that a step
is one launch. Nothing in a step waits for the GPU, so the host is held back here: a request that joins, or leaves, must
not find a thousand steps in the queue.
"""

from __future__ import annotations

from collections import deque

import torch

from attune_ensemble.musicgen.state import BatchState

__all__ = ["CONTEXT_BUCKET", "RUN_AHEAD", "Stepper"]

CONTEXT_BUCKET = 128
"""Context is rounded up to a multiple of this many positions, so that few graphs serve all lengths."""

RUN_AHEAD = 2
"""Steps that may be queued on the GPU."""


class Stepper:
    """Steps a batch; with `graphs` (the default where the batch is on a GPU) by CUDA graphs."""

    def __init__(self, state: BatchState, *, graphs: bool | None = None) -> None:
        self._state = state
        self._on_gpu = state.position.is_cuda
        self._uses_graphs = self._on_gpu if graphs is None else graphs
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        # One pool for all graphs: they run one after the other, and what a step leaves is in the state.
        self._pool = torch.cuda.graph_pool_handle() if self._uses_graphs else None
        self._queued: deque[torch.cuda.Event] = deque()

    def step(self, slots: int, used: int) -> None:
        """Move the first `slots` slots on by one position; `used` is more than the largest of their positions."""
        if self._uses_graphs:
            self._graph(slots, used).replay()
        else:
            self._state.step(slots, used)
        if self._on_gpu:
            self._hold_back()

    def _hold_back(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > RUN_AHEAD:
            self._queued.popleft().synchronize()

    def _graph(self, slots: int, used: int) -> torch.cuda.CUDAGraph:
        bucket = min(self._state.positions, -(-used // CONTEXT_BUCKET) * CONTEXT_BUCKET)
        key = (slots, bucket)
        if key not in self._graphs:
            self._graphs[key] = self._captured(slots, bucket)
        return self._graphs[key]

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
        # The codec's and the requests' threads use the GPU meanwhile; only this thread's calls are captured.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._state.step(slots, used)
        return graph
