"""How fast this machine multiplies matrices, in each kind of numbers: what the floor is counted in."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from attune_export.bench_encoders.ways import Device, Numerics

__all__ = ["Rates"]

_SIZE = 2048
_GPU_SIZE = 8192
_TIMES = 3
_DTYPES: dict[Numerics, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Rates:
    """Products of two square matrices, by PyTorch and, on a processor, by ONNX Runtime: the faster of both counts."""

    def __init__(self, device: Device, threads: int, size: int | None = None) -> None:
        torch.set_num_threads(threads)
        size = size or (_SIZE if device == "cpu" else _GPU_SIZE)
        self._operations = 2 * size**3
        self._products: list[tuple[Numerics, Callable[[], None]]] = [
            (numerics, _of_torch(device, dtype, size))
            for numerics, dtype in _DTYPES.items()
            if device == "cuda" or numerics != "float16"
        ]
        if device == "cpu":
            self._products += [
                ("float32", _of_onnx(_float32_product(size), size, threads)),
                ("int8", _of_onnx(_int8_product(size), size, threads)),
            ]

    def __call__(self) -> dict[Numerics, float]:
        """Return operations a second, two for each multiplication and addition, the best of three."""
        best: dict[Numerics, float] = {}
        for numerics, product in self._products:
            rate = self._operations / min(_seconds(product) for _ in range(_TIMES))
            best[numerics] = max(rate, best.get(numerics, 0.0))
        return best


def _seconds(run: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def _of_torch(device: Device, dtype: torch.dtype, size: int) -> Callable[[], None]:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    product()
    return product


def _of_onnx(graph: onnx.GraphProto, size: int, threads: int) -> Callable[[], None]:
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"left": np.random.default_rng(0).standard_normal((size, size), np.float32)}

    def product() -> None:
        session.run(None, given)

    product()
    return product


def _float32_product(size: int) -> onnx.GraphProto:
    right = np.random.default_rng(1).standard_normal((size, size), np.float32)
    return _graph(helper.make_node("MatMul", ["left", "right"], ["product"]), size, right=right)


def _int8_product(size: int) -> onnx.GraphProto:
    """Return a product that finds the scale of its left side as it runs, as in the graphs of 8 bits."""
    inputs = ["left", "right", "scale", "zero"]
    right = np.random.default_rng(1).integers(-127, 128, (size, size), np.int8)
    constants = {"right": right, "scale": np.full(1, 0.01, np.float32), "zero": np.zeros(1, np.int8)}
    return _graph(
        helper.make_node("DynamicQuantizeMatMul", inputs, ["product"], domain="com.microsoft"), size, **constants
    )


def _graph(node: onnx.NodeProto, size: int, **constants: np.ndarray) -> onnx.GraphProto:
    left, product = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("left", "product")
    )
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_graph([node], "product", [left], [product], weights)
