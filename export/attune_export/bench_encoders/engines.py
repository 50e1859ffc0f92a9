"""What a row runs: both regressors on one padded batch, by PyTorch or by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attune_export.bench_encoders.batches import Arrays, batches, padded
from attune_export.bench_encoders.clip import Clip
from attune_export.bench_encoders.ways import EAGER, Device, Row

__all__ = ["Answers", "Engine", "answers", "engine_of"]

Answers = npt.NDArray[np.float32]
"""V, A, D of some clips, [N, 3]."""


class Engine(Protocol):
    """Answers one batch."""

    def __call__(self, inputs: Arrays) -> Answers:
        """Return V, A, D, [B, 3], of the inputs of one batch."""
        ...


def answers(engine: Engine, clips: Sequence[Clip], row: Row) -> Answers:
    """Return V, A, D of all clips, [N, 3], batch by batch, as many at a time as the row has instances."""
    found = np.empty((len(clips), 3), np.float32)

    def answer(rows: list[int]) -> None:
        found[rows] = engine(padded([clips[index] for index in rows], row.batching))

    groups = batches(clips, row.batching.size)
    if row.instances == 1:
        for rows in groups:
            answer(rows)
    else:
        with ThreadPoolExecutor(row.instances) as pool:
            list(pool.map(answer, groups))
    return found


def engine_of(row: Row, folder: Path, device: Device, threads: int) -> Engine:
    """Return the engine of a row, of the files in `folder` that `graphs.prepare` left; it uses `threads` threads.

    A process imports what its own row needs, and no other framework beside it.
    """
    if row.graphs == EAGER:
        from attune_export.bench_encoders.eager import Eager

        return Eager(row, folder, device, threads)
    from attune_export.bench_encoders.onnx_sessions import OnnxSessions

    return OnnxSessions(row, folder, threads)
