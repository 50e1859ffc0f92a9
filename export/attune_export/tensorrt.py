"""The script that builds a TensorRT engine from an exported graph, on the machine with the GPU.

An engine is specific to one GPU model and one TensorRT release, so it is built where it runs, inside NVIDIA's image.
"""

from __future__ import annotations

from attune_client.protocol import ModelSpec
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_ensemble.speech.segmentation import bucket_length
from attune_ensemble.speech.tokens import bucket_tokens
from attune_export.onnx_export import Sizes, axis_names, axis_range

__all__ = ["build_script"]

_USUAL_S, _USUAL_TOKENS = 4.5, 20
_USUAL_SAMPLES = bucket_length(round(_USUAL_S * SPEECH_SAMPLE_RATE))
_USUAL = Sizes(
    batch=4,
    samples=_USUAL_SAMPLES,
    tokens=bucket_tokens(_USUAL_TOKENS),
    frames=Sizes(1).frames * _USUAL_SAMPLES // SPEECH_SAMPLE_RATE,
)
"""Sizes that the engine is optimised for: a few segments of 4.5 s and their tokens, padded as served."""


def build_script(spec: ModelSpec, graph: str, sha256: str) -> str:
    """Return a shell script for the model's version folder: `graph` to model.plan, for the range of served sizes.

    It rejects a graph with another digest, so that an engine never belongs to an earlier export.
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
    return Sizes(**{name: axis_range(spec, name)[end] for name in ("batch", "samples", "tokens", "frames")})


def _shapes(spec: ModelSpec, sizes: Sizes) -> str:
    """Return `name:AxBxC` of every input, in trtexec's format."""
    texts = []
    for tensor in spec.inputs:
        named = axis_names(tensor)
        shape = [getattr(sizes, named[axis]) if axis in named else size for axis, size in enumerate(tensor.shape, 1)]
        texts.append(f"{tensor.name}:{'x'.join(str(size) for size in (sizes.batch, *shape))}")
    return ",".join(texts)
