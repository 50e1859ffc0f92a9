"""Attune's tests. Where there is no GPU, kernels in Triton's language run in its interpreter."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as Triton is imported, which PyTorch does
