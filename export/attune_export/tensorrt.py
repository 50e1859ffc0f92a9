"""The command that turns an exported graph into a TensorRT engine, for the machine that has the GPU.

An engine holds for one GPU, one TensorRT release: it is built where it will run, inside NVIDIA's image, never here.
"""

from __future__ import annotations

from attune_client.protocol import ModelSpec
from attune_export.onnx_export import Sizes, axis_names, axis_range

__all__ = ["build_script"]

_USUAL = Sizes(batch=4, samples=72_000, tokens=32)
"""The size that the engine is tuned for: a few segments of 4.5 s and their words."""


def build_script(spec: ModelSpec) -> str:
    """A shell script for the model's version folder: model.onnx in, model.plan out, for every size that is served."""
    shapes = {
        "min": _shapes(spec, _bound(spec, 0)),
        "opt": _shapes(spec, _USUAL),
        "max": _shapes(spec, _bound(spec, 1)),
    }
    options = " \\\n  ".join(f"--{name}Shapes={text}" for name, text in shapes.items())
    return f"""#!/bin/sh
# Builds the TensorRT engine of '{spec.name}'. Run it inside NVIDIA's image, on the GPU that will serve it.
set -eu
cd "$(dirname "$0")"
trtexec --onnx=model.onnx --saveEngine=model.plan.partial \\
  {options}
mv model.plan.partial model.plan
"""


def _bound(spec: ModelSpec, end: int) -> Sizes:
    return Sizes(axis_range(spec, "batch")[end], axis_range(spec, "samples")[end], axis_range(spec, "tokens")[end])


def _shapes(spec: ModelSpec, sizes: Sizes) -> str:
    """`name:AxBxC` of every input, as trtexec reads it."""
    texts = []
    for tensor in spec.inputs:
        named = axis_names(tensor)
        shape = [getattr(sizes, named[axis]) if axis in named else size for axis, size in enumerate(tensor.shape, 1)]
        texts.append(f"{tensor.name}:{'x'.join(str(size) for size in (sizes.batch, *shape))}")
    return ",".join(texts)
