"""Export of PyTorch models to ONNX, and validation of each export against the original.

Names, element types and shapes come from the protocol's declarations. The graphs hold standard operators of opset 20
only, all weights inside one file, so that the native onnxruntime backend and TensorRT load them unchanged.

Dimensions: B batch, T samples, L tokens.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from attune_client.protocol import DType, ModelSpec, TensorSpec
from attune_client.protocol.bounds import MAX_SEGMENT_S, MAX_TOKENS
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_export.errors import ExportError
from attune_training.config import TextTowerConfig
from attune_training.models.layers import masked_mean
from attune_training.models.towers import MIN_SAMPLES, TextTower
from attune_weights.files import whole_file

__all__ = [
    "CHECK_SIZES",
    "OPSET",
    "TOLERANCE",
    "Draw",
    "ExportReport",
    "SentenceEncoder",
    "Sizes",
    "axis_names",
    "axis_range",
    "check_export",
    "check_graph",
    "export_model",
    "random_inputs",
]

OPSET = 20
MAX_IR_VERSION = 10
"""Newest IR version that onnxruntime 1.20 reads, the oldest one in the supported NVIDIA images."""

TOLERANCE = 1e-4
"""Tolerated deviation of an export from PyTorch; outputs are of the order of 1, or compared in units of their own."""

_FRAMES_PER_S = 50  # of a state of voice, at most
_MIN_TOKENS = 2  # those that open and close a text
_FIRST_WORD, _LAST_WORD = 1000, 30_000  # of BERT's and MPNet's vocabulary; ids below 1000 are punctuation and unused


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the named dynamic axes at which an export is compared."""

    batch: int
    samples: int = SPEECH_SAMPLE_RATE
    tokens: int = 8
    frames: int = _FRAMES_PER_S


CHECK_SIZES = (
    Sizes(1, MIN_SAMPLES, _MIN_TOKENS),
    Sizes(1, 16_000, 8),
    Sizes(2, 128_000, 40),
    Sizes(3, 40_001, 17),
    Sizes(4, 8_000, MAX_TOKENS),
)
"""Smallest, typical, longest and odd sizes, and a text of maximum length."""

_RANGES = {
    "samples": (MIN_SAMPLES, int(MAX_SEGMENT_S * SPEECH_SAMPLE_RATE)),
    "tokens": (_MIN_TOKENS, MAX_TOKENS),
    "frames": (1, int(MAX_SEGMENT_S * _FRAMES_PER_S)),
}
_AXES = {"waveform": "samples", "audio_state": "frames"} | dict.fromkeys(
    ("input_ids", "attention_mask", "text_state", "sentence_ids", "sentence_mask"), "tokens"
)

Draw = Callable[[Sizes, int], dict[str, Tensor]]
"""Draws inputs of the given sizes by a seed."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export: the largest deviation from PyTorch over all checked sizes, and the file's size."""

    max_deviation: float
    size_bytes: int


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2 with its mean pooling and L2 normalisation as part of the graph."""

    def __init__(self, config: TextTowerConfig, weights: Path | None) -> None:
        """Build it from a folder of transformers' BERT; None: random weights.

        Raises:
            ValueError: the folder holds no BERT of the configured shape.
        """
        super().__init__()
        self.tower = TextTower(config, weights)

    def forward(self, sentence_ids: Tensor, sentence_mask: Tensor) -> Tensor:
        """Embed sentence_ids and sentence_mask [B, L], both int64, as [B, D] of unit length."""
        pooled = masked_mean(self.tower(sentence_ids, sentence_mask), sentence_mask > 0)  # [B, D]
        return functional.normalize(pooled, dim=-1)


def random_inputs(spec: ModelSpec, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Draw inputs of the given sizes for a declared model, by name; rows differ in their true lengths.

    A tensor of a fixed shape that declares its limits is drawn evenly from between them. Raises KeyError for any other
    that no maker is known for.
    """
    generator = torch.Generator().manual_seed(seed)
    return {tensor.name: _random(tensor, sizes, generator) for tensor in spec.inputs}


def _random(tensor: TensorSpec, sizes: Sizes, generator: torch.Generator) -> Tensor:
    if tensor.limits is None or -1 in tensor.shape:
        return _MAKERS[tensor.name](sizes, generator)
    low, high = tensor.limits
    return low + (high - low) * torch.rand(sizes.batch, *tensor.shape, generator=generator)


def _waveform(sizes: Sizes, generator: torch.Generator) -> Tensor:
    return 0.1 * torch.randn(sizes.batch, sizes.samples, generator=generator)  # [B, T]


def _num_samples(sizes: Sizes, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(MIN_SAMPLES, sizes.samples + 1, (sizes.batch, 1), generator=generator)  # [B, 1]
    lengths[0] = sizes.samples
    return lengths


def _input_ids(sizes: Sizes, generator: torch.Generator) -> Tensor:
    return torch.randint(_FIRST_WORD, _LAST_WORD, (sizes.batch, sizes.tokens), generator=generator)  # [B, L]


def _attention_mask(sizes: Sizes, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(_MIN_TOKENS, sizes.tokens + 1, (sizes.batch, 1), generator=generator)
    lengths[0] = sizes.tokens
    return (torch.arange(sizes.tokens) < lengths).long()  # [B, L]


_MAKERS: dict[str, Callable[[Sizes, torch.Generator], Tensor]] = {
    "waveform": _waveform,
    "num_samples": _num_samples,
    "input_ids": _input_ids,
    "attention_mask": _attention_mask,
    "sentence_ids": _input_ids,
    "sentence_mask": _attention_mask,
}


def export_model(
    module: nn.Module,
    spec: ModelSpec,
    target: Path,
    *,
    sizes: Sequence[Sizes] = CHECK_SIZES,
    tolerance: float = TOLERANCE,
    draw: Draw | None = None,
) -> ExportReport:
    """Export `module` as the declared model `spec` to the file `target`.

    The file is created only after `check_graph` and `check_export` have passed. `draw` draws the inputs that it is
    traced and compared with; None: `random_inputs` of the model.

    Raises:
        ExportError: the export or a check failed, or a weight is not finite; the message names the model and the
        reason,
            and no file is left.
    """
    _check_weights(module, spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as unchecked:
        _export(module.eval(), spec, unchecked, draw or partial(random_inputs, spec))
        check_graph(unchecked, spec)
        deviation = check_export(unchecked, module, spec, sizes=sizes, tolerance=tolerance, draw=draw)
        size_bytes = unchecked.stat().st_size
    return ExportReport(deviation, size_bytes)


def _check_weights(module: nn.Module, spec: ModelSpec) -> None:
    """Raise ExportError for a weight that is not finite: in a row of an embedding it may be missed by every check."""
    for name, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise ExportError(f"{spec.name}: the weight '{name}' holds values that are not finite numbers")


def _export(module: nn.Module, spec: ModelSpec, path: Path, draw: Draw) -> None:
    inputs = draw(Sizes(batch=2, samples=16_000, tokens=8), 0)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                kwargs=inputs,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=_dynamic_shapes(spec),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{spec.name} cannot be exported to ONNX: {error}") from error
    assert program is not None  # it is None for the legacy exporter only
    _free_public_names(program)
    _name_output_axes(program, spec)
    program.save(path, external_data=False)


def _free_public_names(program: torch.onnx.ONNXProgram) -> None:
    """Rename inner values with an output's name: the exporter does not check the names of outputs for collisions."""
    graph = program.model.graph
    outputs = set(graph.outputs)
    taken = {value.name for value in outputs}
    for value in (value for node in graph for value in node.outputs):
        if value.name in taken and value not in outputs:
            value.name = f"inner_{value.name}"


def _name_output_axes(program: torch.onnx.ONNXProgram, spec: ModelSpec) -> None:
    """Name the outputs' axes as declared: one whose size follows from an input's has a formula for a name."""
    for tensor, value in zip(spec.outputs, program.model.graph.outputs, strict=True):
        for axis, name in axis_names(tensor).items():
            if value.shape is not None and not isinstance(value.shape[axis], int):
                value.shape[axis] = name


def _dynamic_shapes(spec: ModelSpec) -> dict[str, dict[int, Dim]]:
    """Return the dynamic axes of every input, axis 0 being the batch, with their names and ranges."""
    ranges = {name: axis_range(spec, name) for name in ("batch", *_RANGES)}
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in ranges.items()}
    return {
        tensor.name: {0: dims["batch"]} | {axis: dims[name] for axis, name in axis_names(tensor).items()}
        for tensor in spec.inputs
    }


def axis_range(spec: ModelSpec, name: str) -> tuple[int, int]:
    """Return smallest and largest size of a named axis: `batch`, `samples`, `tokens` or `frames`."""
    return (1, spec.max_batch_size) if name == "batch" else _RANGES[name]


def axis_names(tensor: TensorSpec) -> dict[int, str]:
    """Return the names of a tensor's dynamic axes by index, with the batch axis in front."""
    return {axis: _AXES[tensor.name] for axis, size in enumerate(tensor.shape, start=1) if size == -1}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about operators that no model here uses."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_graph(path: Path, spec: ModelSpec) -> None:
    """Check that the file agrees with the protocol's declaration, and that current ONNX runtimes can load it.

    Raises:
        ExportError: a tensor has another name, element type or shape, an operator is outside the standard set, the
        opset
            or the IR version is too new, or weights are outside the file.
    """
    model = onnx.load(path, load_external_data=False)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{spec.name} is not a valid ONNX model: {error}") from error
    if model.ir_version > MAX_IR_VERSION:
        raise ExportError(f"{spec.name}: file format IR {model.ir_version} is newer than {MAX_IR_VERSION}")
    opsets = {(entry.domain, entry.version) for entry in model.opset_import}
    if opsets != {("", OPSET)}:
        raise ExportError(f"{spec.name}: opsets {sorted(opsets)}; only the standard opset {OPSET} is allowed")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError(f"{spec.name}: some weights lie outside {path.name}")
    for declared, found in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        wanted = [_declared(tensor) for tensor in declared]
        got = [_found(value) for value in found]
        if wanted != got:
            raise ExportError(f"{spec.name}: the protocol declares {wanted}, the graph has {got}")


_ELEMENT_TYPES = {DType.FP32: onnx.TensorProto.FLOAT, DType.INT64: onnx.TensorProto.INT64}


def _declared(tensor: TensorSpec) -> tuple[str, int, tuple[str | int, ...]]:
    names = axis_names(tensor)
    shape = tuple(names.get(axis, size) for axis, size in enumerate(tensor.shape, start=1))
    return tensor.name, _ELEMENT_TYPES[tensor.dtype], ("batch", *shape)


def _found(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[str | int, ...]]:
    kind = value.type.tensor_type
    return value.name, kind.elem_type, tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)


def check_export(
    path: Path,
    module: nn.Module,
    spec: ModelSpec,
    *,
    sizes: Sequence[Sizes] = CHECK_SIZES,
    tolerance: float = TOLERANCE,
    draw: Draw | None = None,
) -> float:
    """Compare onnxruntime with PyTorch at every size; return the largest absolute deviation.

    `draw` draws the inputs; None: `random_inputs` of the model.

    Raises:
        ExportError: the deviation is above `tolerance` or NaN, onnxruntime fails, or an output is not finite; the
        message
            names the model and the size.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    draw = draw or partial(random_inputs, spec)
    return max(_deviation(session, module, spec, point, tolerance, draw) for point in sizes)


def _deviation(
    session: onnxruntime.InferenceSession,
    module: nn.Module,
    spec: ModelSpec,
    sizes: Sizes,
    tolerance: float,
    draw: Draw,
) -> float:
    inputs = draw(sizes, sizes.batch)
    expected = _original(module, inputs)
    for tensor, values in zip(spec.outputs, expected, strict=True):
        if not np.isfinite(values).all():
            raise ExportError(f"{spec.name}: '{tensor.name}' is not finite at {sizes}")
    try:
        got = session.run([tensor.name for tensor in spec.outputs], _as_numpy(inputs))
    except Exception as error:  # onnxruntime's exceptions have no other common base
        raise ExportError(f"{spec.name}: onnxruntime fails at {sizes}: {error}") from error
    deviations = [_largest_difference(*values) for values in zip(spec.outputs, got, expected, strict=True)]
    for tensor, deviation in zip(spec.outputs, deviations, strict=True):
        if not deviation <= tolerance:  # so that NaN fails too
            raise ExportError(
                f"{spec.name}: '{tensor.name}' deviates from PyTorch by {deviation:.3g} at {sizes}; "
                f"at most {tolerance:g} is allowed"
            )
    return max(deviations)


def _largest_difference(tensor: TensorSpec, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest absolute difference; of a tensor without limits, in units of its largest value if above 1."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = 1.0 if tensor.limits is not None else max(1.0, float(np.abs(theirs).max()))
    return float(np.abs(ours - theirs).max()) / scale


def _original(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = module(**inputs)
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _as_numpy(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}
