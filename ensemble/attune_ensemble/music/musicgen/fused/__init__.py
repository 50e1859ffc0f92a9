"""MusicGen's step on a GPU in few kernels, written in Triton's language (the compiler, not the server)."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.state import BatchState

if TYPE_CHECKING:
    from attune_ensemble.music.musicgen.fused.step import FusedStep

__all__ = ["fused_step", "is_fusible"]


def is_fusible(decoder: Decoder) -> bool:
    """Whether the kernels compute what this decoder does, and can be compiled where it lies."""
    first = decoder.layers[0]
    plain = isinstance(decoder.heads, nn.Linear) and isinstance(first.expand, nn.Linear)
    return bool(decoder.embedding.weight.is_cuda and plain and decoder.has_folded_norms and _has_compiler())


def fused_step(state: BatchState) -> FusedStep | None:
    """The fused step of a state, or None where there is none (`is_fusible`)."""
    if not is_fusible(state.decoder):
        return None
    from attune_ensemble.music.musicgen.fused.step import FusedStep  # imports the compiler

    return FusedStep(state)


def _has_compiler() -> bool:
    """PyTorch for CUDA brings it; PyTorch for the CPU does not. It needs a C compiler and Python's headers itself, for
    what starts the kernels, and images often have neither."""
    c_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    return find_spec("triton") is not None and bool(c_compiler) and headers.is_file()
