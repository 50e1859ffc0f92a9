"""Messages of Triton, ONNX Runtime and Python, as they may be shown to whoever sent a request."""

from __future__ import annotations

import re

__all__ = ["without_internals"]

_TRACE = re.compile(r"\n+(At:|Traceback \(most recent call last\):)\n.*", re.DOTALL)
_INTERNAL = re.compile(
    r"(?<![\w.:/])/(?:[\w.@+~-]+/)+[\w.@+~-]*(?::\d+)?"  # absolute paths, with or without a line
    r"|\b(?:attune-serve|triton_python_backend_shm_region)[\w-]*"  # shared memory
)


def without_internals(text: str) -> str:
    """The message without what is nobody's business outside: paths, names of memory regions, traces."""
    return _INTERNAL.sub("…", _TRACE.sub("", text))
