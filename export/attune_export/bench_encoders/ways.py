"""The rows: each one way to answer the clips, mostly the one above it with a single thing changed.

Every row's process imports this, so frameworks are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attune_export.bench_encoders.batches import Batching

__all__ = ["CUT", "EAGER", "ROWS", "WHOLE", "Device", "Graphs", "Numerics", "Row", "chosen", "unavailable"]

Device = Literal["cpu", "cuda"]
Numerics = Literal["float32", "bfloat16", "float16", "int8"]
Graphs = Literal["eager", "whole", "cut", "int8-tensors", "int8-blocks", "int8-mixed"]
EAGER: Graphs = "eager"
WHOLE: Graphs = "whole"
CUT: Graphs = "cut"
"""Run by PyTorch; and graphs that ONNX Runtime runs: of each regressor whole, of the encoder and what is behind it, and
those in 8 bits."""

_SERVED_BUCKET_S, _SERVED_BUCKET_TOKENS = 1.0, 16
_BATCH = 4
_GPU_BATCH = 16
_FULL = Batching(1, None)
_BUCKETS = Batching(1, _SERVED_BUCKET_S, _SERVED_BUCKET_TOKENS)


@dataclass(frozen=True, slots=True)
class Row:
    """One way. `what` is its line in the table, `name` what `--rows` calls it by.

    `merged` adapters cost nothing; `shared`: the encoder is computed once, not once for each regressor. `threads` are
    those of one batch, None: all, shared by the `instances` that run side by side (0: one for each thread). `spins`:
    threads of ONNX Runtime wait for work in a loop, which is a little faster on an idle machine and much slower on any
    other.
    """

    name: str
    what: str
    graphs: Graphs = EAGER
    merged: bool = True
    shared: bool = True
    batching: Batching = _BUCKETS
    numerics: Numerics = "float32"
    devices: tuple[Device, ...] = ("cpu", "cuda")
    provider: str = "CPUExecutionProvider"
    compiled: bool = False
    threads: int | None = None
    instances: int = 1
    spins: bool = False


def _rows() -> tuple[Row, ...]:
    batched = replace(_BUCKETS, size=_BATCH)
    many = replace(_BUCKETS, size=_GPU_BATCH)
    eager = Row("paper", "the paper's way: PyTorch, padded to 8 s", merged=False, shared=False, batching=_FULL)
    onnx = Row("onnx", "ONNX Runtime", WHOLE, shared=False, devices=("cpu",))
    served = replace(onnx, name="shared", what="encoder shared", graphs=CUT, shared=True)
    in_8_bits = replace(served, graphs="int8-tensors", batching=batched, numerics="int8", instances=0)
    on_gpu = Row("gpu-shared", f"PyTorch, encoder shared, batches of {_GPU_BATCH}", batching=many, devices=("cuda",))
    halved = replace(on_gpu, numerics="bfloat16")
    return (
        eager,
        replace(eager, name="merged", what="adapters merged", merged=True),
        replace(eager, name="true-length", what="true length", merged=True, batching=Batching()),
        replace(eager, name="buckets", what="length buckets of 1 s", merged=True, batching=_BUCKETS),
        onnx,
        served,
        replace(served, name="batched", what=f"batches of {_BATCH}", batching=batched),
        replace(served, name="side-by-side", what="one batch on each core", batching=batched, instances=0),
        replace(in_8_bits, name="int8-tensors", what="8 bits, a scale for each tensor"),
        replace(in_8_bits, name="int8-blocks", what="8 bits, a scale for each block", graphs="int8-blocks"),
        replace(in_8_bits, name="int8-mixed", what="8 bits, blocks where there are outliers", graphs="int8-mixed"),
        replace(
            halved, name="bf16", what=f"PyTorch, bfloat16, batches of {_BATCH}", batching=batched, devices=("cpu",)
        ),
        on_gpu,
        replace(halved, name="gpu-bf16", what="bfloat16"),
        replace(halved, name="gpu-fp16", what="float16", numerics="float16"),
        replace(halved, name="gpu-compiled", what="bfloat16, torch.compile with CUDA graphs", compiled=True),
        replace(on_gpu, name="onnx-cuda", what="ONNX Runtime, CUDA", graphs=CUT, provider="CUDAExecutionProvider"),
        replace(
            on_gpu,
            name="tensorrt",
            what="ONNX Runtime, TensorRT in float16",
            graphs=CUT,
            numerics="float16",
            provider="TensorrtExecutionProvider",
        ),
    )


ROWS: Mapping[str, Row] = {row.name: row for row in _rows()}
"""All rows by name, in the table's order."""

_SETTINGS: Mapping[str, Callable[[Row, str], Row]] = {
    "size": lambda row, text: replace(row, batching=replace(row.batching, size=_at_least_one(text))),
    "bucket": lambda row, text: replace(row, batching=replace(row.batching, bucket_s=float(text))),
    "tokens": lambda row, text: replace(row, batching=replace(row.batching, bucket_tokens=int(text))),
    "threads": lambda row, text: replace(row, threads=_at_least_one(text)),
    "instances": lambda row, text: replace(row, instances=int(text)),
    "spins": lambda row, text: replace(row, spins=bool(int(text))),
}
"""What may follow a row's name: `batched:size=8:threads=1`."""


def _at_least_one(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def chosen(names: Sequence[str]) -> list[Row]:
    """Return the rows of these names with their settings; without any, all.

    Raises:
        ValueError: a name or a setting is unknown, a value makes no sense, or a row is asked for twice.
    """
    if not names:
        return list(ROWS.values())
    rows = [_with_settings(name) for name in names]
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("a row is asked for twice")
    return rows


def _with_settings(text: str) -> Row:
    name, *settings = text.split(":")
    if name not in ROWS:
        raise ValueError(f"there is no row {name!r}; the rows are {', '.join(ROWS)}")
    row = ROWS[name]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in _SETTINGS:
            raise ValueError(f"{text!r}: a setting is one of {', '.join(_SETTINGS)}, with its value: size=4")
        try:
            row = _SETTINGS[key](row, value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {key} cannot be {value!r}") from error
    if settings:
        row = replace(row, name=text, what=f"{row.what} ({', '.join(settings)})")
    return row


def unavailable(row: Row, device: Device) -> str:
    """Return why a row cannot run on this machine's `device`; empty if it can."""
    if device not in row.devices:
        return "it is for a GPU" if row.devices == ("cuda",) else "it is for a CPU"
    if row.graphs != EAGER:
        import onnxruntime

        if row.provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {row.provider}"
    elif row.numerics == "bfloat16" and device == "cpu" and not _cpu_multiplies_bfloat16():
        return "this processor has no products in bfloat16"
    return ""


def _cpu_multiplies_bfloat16() -> bool:
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
