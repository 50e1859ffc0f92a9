"""The machine under the benchmark: its clock, its copy bandwidth, the memory in use."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attune_client.bench.report import hardware_line

__all__ = ["copy_bandwidth", "describe", "memory_in_use", "reset_memory", "timed"]

_COPY_BYTES = 1 << 28
_STATM_RESIDENT = 1
_PAGE_BYTES = 4096


def describe(device: str) -> str:
    """The hardware line, with the GPU where it is one."""
    line = f"{hardware_line()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return line if device == "cpu" else f"{line}; {torch.cuda.get_device_name()}"


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds that `run` takes, what it left on the GPU included."""
    _synchronise(device)
    started = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - started


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy reads and writes, the best of ten."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times = [timed(lambda: target.copy_(source), device) for _ in range(10)]
    return 2 * _COPY_BYTES / min(times)


def reset_memory(device: str) -> None:
    """Begin a new row: what the last one freed is given back."""
    gc.collect()  # an error holds what was there when it was raised
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory_in_use(device: str) -> int:
    """Bytes: the GPU's peak since `reset_memory`; on a CPU what the process holds now, libraries included."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[_STATM_RESIDENT]) * _PAGE_BYTES


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
