"""Provenance of a result: the machine, the rank of the process, and the revision of the sources."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

from attune_training.providers import hardware

__all__ = ["git_revision", "hardware_line", "is_first_process"]

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in Lightning's order


def is_first_process() -> bool:
    """Return whether this process has rank 0, the only one that measures, writes and prints in distributed training."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0) == 0


def hardware_line(accelerator: str) -> str:
    """Return a one-line description of the machine: the benchmarks' one, threads in use, and the GPU if it is used."""
    line = f"{hardware()}, {torch.get_num_threads()} threads"
    if accelerator != "cpu" and torch.cuda.is_available():
        line += f"; {torch.cuda.get_device_name()}"
    return line


def git_revision() -> str:
    """Return the revision of the sources, marked `-dirty` if they were changed; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
