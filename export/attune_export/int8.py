"""Graphs with weights in 8 bits, for processors: about half the time of float32, and less than half of its size.

There are two ways, both ONNX Runtime's own. In the first a tensor of activations gets one scale, found as it runs
(`quantize_dynamic`). It is the faster one, but one outlier anywhere in a batch costs all others their accuracy. In the
second every 128 numbers of a row have a scale of their own (MatMulNBits), and what else is in the batch changes
nothing. Outliers are in the stream of the words, and where a feed-forward layer contracts: there `mixed` takes blocks.
Convolutions, attention, and what lies behind the place where both streams meet stay in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from attune_client.protocol.models import AUDIO_STATE, INPUT_IDS, POOLED_STATE, TEXT_STATE, WAVEFORM
from attune_weights.files import whole_file

__all__ = ["WAYS", "Products", "Way", "products", "quantise"]

Way = Literal["tensors", "blocks", "mixed"]
WAYS: tuple[Way, ...] = ("tensors", "blocks", "mixed")
"""One scale for a tensor of activations; one for each block of a row; the second where there are outliers."""

_BLOCK = 128
_INT8_ACTIVATIONS = 4  # the level of accuracy at which MatMulNBits multiplies in 8 bits
_CONTRACTING = 2  # times as many inputs as outputs
_VOICE, _WORDS = frozenset({"voice"}), frozenset({"words"})
_ORIGINS = {
    WAVEFORM.name: _VOICE,
    AUDIO_STATE.name: _VOICE,
    INPUT_IDS.name: _WORDS,
    TEXT_STATE.name: _WORDS,
    POOLED_STATE.name: _VOICE | _WORDS,
}


@dataclass(frozen=True, slots=True)
class Products:
    """Names of the products of one stream with a constant matrix: without outliers in what is multiplied, and with."""

    plain: tuple[str, ...]
    outliers: tuple[str, ...]

    def in_tensors(self, way: Way) -> tuple[str, ...]:
        """Return those that get one scale for a tensor."""
        return {"tensors": self.plain + self.outliers, "blocks": (), "mixed": self.plain}[way]

    def in_blocks(self, way: Way) -> tuple[str, ...]:
        """Return those that get a scale for each block."""
        return {"tensors": (), "blocks": self.plain + self.outliers, "mixed": self.outliers}[way]


def products(model: onnx.ModelProto) -> Products:
    """Return the products of a regressor's graph, or of the encoder's, that may be done in 8 bits."""
    matrices = {tensor.name: tensor.dims for tensor in model.graph.initializer if len(tensor.dims) == 2}
    origins: dict[str, frozenset[str]] = dict(_ORIGINS)
    plain: list[str] = []
    outliers: list[str] = []
    for node in model.graph.node:
        taken = [] if node.op_type == "Shape" else node.input  # sizes are no stream's
        origin = frozenset[str]().union(*(origins.get(name, frozenset()) for name in taken))
        origins |= dict.fromkeys(node.output, origin)
        if node.op_type != "MatMul" or node.input[1] not in matrices or len(origin) != 1:
            continue
        inputs, outputs = matrices[node.input[1]]
        (outliers if origin == _WORDS or inputs >= _CONTRACTING * outputs else plain).append(node.name)
    return Products(tuple(plain), tuple(outliers))


def quantise(graph: Path, target: Path, way: Way = "mixed") -> None:
    """Write a regressor's graph, or the encoder's, with 8-bit weights to the file `target`."""
    model = onnx.load(graph)
    # The exporter's shapes name dimensions in a way that the quantiser's shape inference contradicts.
    del model.graph.value_info[:]
    found = products(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quiet(), whole_file(target) as file:
        model = _tensors_in_int8(model, found.in_tensors(way))
        onnx.save(_blocks_in_int8(model, found.in_blocks(way)), file)


def _tensors_in_int8(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    if not names:  # which the quantiser takes for all
        return model
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            file,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=list(names),
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(file)


def _blocks_in_int8(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    if not names:
        return model
    settings = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_ACTIVATIONS, bits=8, op_types_to_quantize=("MatMul",)
    )
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in names]
    quantiser = MatMulNBitsQuantizer(model, algo_config=settings, nodes_to_exclude=others)
    quantiser.process()
    return quantiser.model.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantisers' account of every node."""
    loggers: Mapping[logging.Logger, int] = {
        logger: logger.level
        for logger in map(logging.getLogger, ("", "onnxruntime.quantization.matmul_nbits_quantizer"))
    }
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
