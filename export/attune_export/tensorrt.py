"""The command that turns an exported graph into a TensorRT engine, for the machine that has the GPU.

An engine holds for one GPU, one TensorRT release: it is built where it will run, inside NVIDIA's image, never here.
"""

from __future__ import annotations

from attune_client.protocol import ModelSpec
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_ensemble.speech.segmentation import bucket_length
from attune_ensemble.speech.tokens import bucket_tokens
from attune_export.onnx_export import Sizes, axis_names, axis_range

__all__ = ["build_script"]

_USUAL_S, _USUAL_TOKENS = 4.5, 20
_USUAL = Sizes(
    batch=4, samples=bucket_length(round(_USUAL_S * SPEECH_SAMPLE_RATE)), tokens=bucket_tokens(_USUAL_TOKENS)
)
"""The size that the engine is tuned for: a few segments of 4.5 s and their words, as they are padded to be served."""


def build_script(spec: ModelSpec, graph: str, sha256: str) -> str:
    """A shell script for the model's version folder: `graph` in, model.plan out, for every size that is served.

    It refuses any other graph than the one with this digest, so that an engine is never that of a former export.
    """
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
PATH="$PATH:/usr/src/tensorrt/bin"
check() {{
  echo "{sha256}  {graph}" | sha256sum -c --status && return
  echo "{graph} is not the graph of this script: run attune export --profile tensorrt again, then this script" >&2
  exit 1
}}
check
trtexec --onnx={graph} --saveEngine=model.plan.partial \\
  {options}
check
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
