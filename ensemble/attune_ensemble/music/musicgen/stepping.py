"""Running a step: as it is on a CPU, as a captured CUDA graph on a GPU.

Every graph there can be is captured before the first request (`Stepper.prepare`), because capturing one takes longer
than many steps: one for each number of rows (1, 2, 4, 8, ... and all slots) and each bucket of context. Slots to step
are rounded up to the next number of rows; the rows too many leave no trace. After that a step is one launch. Nothing in
a step waits for the GPU, so the host is held back here: a request that joins, or leaves, must not find a thousand steps
in the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch

from attune_ensemble.music.musicgen.fused import fused_step
from attune_ensemble.music.musicgen.state import BatchState

__all__ = ["CONTEXT_BUCKET", "RUN_AHEAD", "CudaGraphs", "GraphMaker", "Stepper", "row_counts"]

CONTEXT_BUCKET = 128
"""Context is rounded up to a multiple of this many positions, so that few graphs serve all lengths."""

RUN_AHEAD = 2
"""Steps that may be queued on the GPU."""

Replay = Callable[[], None]


class GraphMaker(Protocol):
    """Makes graphs of what runs on the device."""

    def capture(self, run: Callable[[], None]) -> Replay:
        """Return what does again, on the same memory, what `run` does now; `run` may be called several times."""
        ...


class CudaGraphs:
    """CUDA's graphs, in one pool of memory: they run one after the other, and what a step leaves is in the state."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Replay:
        """Run once beside the capture, so that libraries have loaded what they need, and capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile; only this thread's calls are captured.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        replay: Replay = graph.replay
        return replay


def row_counts(slots: int) -> tuple[int, ...]:
    """Powers of two below `slots`, and `slots`."""
    return (*(1 << power for power in range((slots - 1).bit_length())), slots)


class Stepper:
    """Steps a batch; by `graphs` where there are any (CUDA's, by default, where the batch is on a GPU)."""

    def __init__(
        self, state: BatchState, *, graphs: GraphMaker | Literal[False] | None = None, fused: bool = True
    ) -> None:
        """`graphs`: False for none. `fused`: by the kernels of `fused`, where they can be used and there are graphs."""
        self._state = state
        step = fused_step(state) if fused and graphs is not False else None
        self._step_rows = state.step_rows if step is None else step.step_rows
        self._on_gpu = state.position.is_cuda
        if graphs is None and self._on_gpu:
            graphs = CudaGraphs()
        self._maker = graphs or None
        self._replays: dict[tuple[int, int], Replay] = {}
        self._queued: deque[torch.cuda.Event] = deque()

    @torch.inference_mode()
    def prepare(self, counts: Iterable[int] | None = None) -> int:
        """Capture all graphs for these numbers of slots (default: for any); return how many there are.

        Nothing moves in the state meanwhile. The largest come first: the smaller ones find their memory in the pool.
        """
        if self._maker is None:
            return 0
        self._state.run(0)
        rows = {self._rows(count) for count in (row_counts(self._state.slots) if counts is None else counts)}
        for key in sorted(((count, used) for count in rows for used in self._contexts()), reverse=True):
            if key not in self._replays:
                self._replays[key] = self._captured(self._maker, *key)
        return len(self._replays)

    def step(self, slots: int, used: int) -> None:
        """Move the first `slots` slots on by one position; `used` is more than the largest of their positions.

        With graphs, `prepare` comes first.
        """
        if self._maker is None:
            self._state.step(slots, used)
        else:
            self._state.run(slots)
            self._replays[self._rows(slots), self._context(used)]()
        if self._on_gpu:
            self._hold_back()

    def _hold_back(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > RUN_AHEAD:
            self._queued.popleft().synchronize()

    def _captured(self, maker: GraphMaker, rows: int, used: int) -> Replay:
        return maker.capture(lambda: self._step_rows(rows, used))

    def _rows(self, slots: int) -> int:
        return next(count for count in row_counts(self._state.slots) if count >= slots)

    def _context(self, used: int) -> int:
        return min(self._state.positions, -(-used // CONTEXT_BUCKET) * CONTEXT_BUCKET)

    def _contexts(self) -> set[int]:
        return {self._context(used) for used in range(1, self._state.positions + 1)}
