"""ONNX Runtime as the onnxruntime backend uses it: options from a model configuration, checks, batching of requests.

The parameters and their meaning are those of NVIDIA's onnxruntime_backend (its README, "Model Config Options"), so a
model folder served here is served unchanged by the native backend. Not supported: GPUs, sequence states, ragged
batches. Unlike there, outputs that are not finite are an error: with a `model_warmup` in its configuration, a graph of
broken weights is not even loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from attune_client.protocol.errors import InvalidRequest
from attune_client.protocol.foreign_text import without_internals
from attune_client.protocol.profiles import MODEL_FILE
from attune_client.protocol.tensors import decode

__all__ = ["Config", "Job", "ModelError", "NotFiniteError", "OnnxModel", "complete_config", "session_options"]

Config = Mapping[str, Any]
"""A model configuration as the dictionary that Triton's JSON gives."""

Arrays = dict[str, npt.NDArray[Any]]

DEFAULT_MAX_BATCH_SIZE = 4
"""What the native backend takes when a graph batches and the configuration does not say how far."""

_TYPES: dict[str, tuple[str, type[np.generic]]] = {
    "tensor(bool)": ("TYPE_BOOL", np.bool_),
    "tensor(uint8)": ("TYPE_UINT8", np.uint8),
    "tensor(uint16)": ("TYPE_UINT16", np.uint16),
    "tensor(uint32)": ("TYPE_UINT32", np.uint32),
    "tensor(uint64)": ("TYPE_UINT64", np.uint64),
    "tensor(int8)": ("TYPE_INT8", np.int8),
    "tensor(int16)": ("TYPE_INT16", np.int16),
    "tensor(int32)": ("TYPE_INT32", np.int32),
    "tensor(int64)": ("TYPE_INT64", np.int64),
    "tensor(float16)": ("TYPE_FP16", np.float16),
    "tensor(float)": ("TYPE_FP32", np.float32),
    "tensor(double)": ("TYPE_FP64", np.float64),
    "tensor(string)": ("TYPE_STRING", np.object_),
}

# optimization { graph { level } }: the numbers are the native backend's.
_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_SESSION_PREFIX = "session."
_TOO_LARGE = 1e15


class ModelError(ValueError):
    """A configuration that does not fit its graph, or a request that the graph cannot run; one line says why."""


class NotFiniteError(ModelError):
    """The graph's own fault: it answered with NaN or infinity."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output of a graph; -1 marks a dimension of any size."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    @classmethod
    def of(cls, node: ort.NodeArg) -> GraphTensor:
        """From what the session says; ModelError for a type that Triton does not have."""
        if node.type not in _TYPES:
            raise ModelError(f"tensor '{node.name}' is a {node.type}, which the server cannot carry")
        dims = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
        return cls(node.name, _TYPES[node.type][0], dims)


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its tensors, and the names of the outputs that it wants."""

    inputs: Arrays
    outputs: tuple[str, ...]


def model_file(version_folder: Path, config: Config) -> Path:
    """The graph's file; ModelError if it is not there."""
    path = version_folder / (config.get("default_model_filename") or MODEL_FILE)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"unable to find '{path}' for model '{config['name']}'")
    return path


def complete_config(config: dict[str, Any], version_folder: Path) -> None:
    """Fill in what the configuration leaves open, in place, as the native backend does.

    Nothing is done when both inputs and outputs are given. Otherwise they come from the graph, and a graph whose
    tensors all have a first dimension of any size batches.

    Raises:
        ModelError: no such file, no such type, or batching asked of a graph that cannot.
    """
    if config.get("input") and config.get("output"):
        return
    session = ort.InferenceSession(model_file(version_folder, config), providers=["CPUExecutionProvider"])
    inputs = [GraphTensor.of(node) for node in session.get_inputs()]
    outputs = [GraphTensor.of(node) for node in session.get_outputs()]
    _complete_batching(config, [*inputs, *outputs])
    batched = config["max_batch_size"] > 0
    config["input"] = config.get("input") or [_declaration(tensor, batched) for tensor in inputs]
    config["output"] = config.get("output") or [_declaration(tensor, batched) for tensor in outputs]


def _complete_batching(config: dict[str, Any], tensors: Sequence[GraphTensor]) -> None:
    can_batch = all(tensor.dims[:1] == (-1,) for tensor in tensors)
    if not can_batch:
        if config.get("max_batch_size"):
            raise ModelError(
                f"model '{config['name']}' does not support batching while a non-zero max_batch_size is specified"
            )
        config["max_batch_size"] = 0
        return
    config["max_batch_size"] = config.get("max_batch_size") or DEFAULT_MAX_BATCH_SIZE
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})


def _declaration(tensor: GraphTensor, batched: bool) -> dict[str, Any]:
    dims = list(tensor.dims[1:] if batched else tensor.dims)
    declaration = {"name": tensor.name, "data_type": tensor.data_type, "dims": dims or [1]}
    # A configuration cannot declare an empty shape, so the server reshapes [1] to it.
    return declaration if dims else declaration | {"reshape": {"shape": []}}


def session_options(config: Config, log: Callable[[str], None]) -> ort.SessionOptions:
    """Session options from the official parameters; others are ignored, and `log` is told.

    Raises:
        ModelError: a value that the parameter cannot have.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = _level(config)
    setters: dict[str, Callable[[str], None]] = {
        "intra_op_thread_count": lambda value: setattr(options, "intra_op_num_threads", int(value)),
        "inter_op_thread_count": lambda value: setattr(options, "inter_op_num_threads", int(value)),
        "execution_mode": lambda value: setattr(options, "execution_mode", _EXECUTION_MODES[value]),
        "enable_mem_arena": lambda value: setattr(options, "enable_cpu_mem_arena", _BOOLEANS[value.lower()]),
        "enable_mem_pattern": lambda value: setattr(options, "enable_mem_pattern", _BOOLEANS[value.lower()]),
        _ARENA_SHRINKAGE: lambda value: None,  # an option of each run: see `run_options`
    }
    for name, value in _parameters(config).items():
        if name.startswith(_SESSION_PREFIX):
            options.add_session_config_entry(name, value)
        elif name in setters:
            _apply(setters[name], name, value)
        else:
            log(f"model '{config['name']}': the parameter '{name}' means nothing here and is ignored")
    return options


_EXECUTION_MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def _apply(setter: Callable[[str], None], name: str, value: str) -> None:
    try:
        setter(value)
    except (KeyError, ValueError) as error:
        raise ModelError(f"parameter '{name}' cannot be '{value}'") from error


def _level(config: Config) -> ort.GraphOptimizationLevel:
    level = int((config.get("optimization") or {}).get("graph", {}).get("level", 0))
    if level not in _LEVELS:
        raise ModelError(f"optimization.graph.level is one of {sorted(_LEVELS)}, not {level}")
    return _LEVELS[level]


def _parameters(config: Config) -> dict[str, str]:
    return {name: value["string_value"] for name, value in (config.get("parameters") or {}).items()}


def run_options(config: Config) -> ort.RunOptions:
    """Options of each run: whether memory is given back after it."""
    options = ort.RunOptions()
    if shrink := _parameters(config).get(_ARENA_SHRINKAGE):
        options.add_run_config_entry(_ARENA_SHRINKAGE, shrink)
    return options


class OnnxModel:
    """A graph that answers requests as its model configuration declares it.

    Args:
        version_folder: `<repository>/<model>/<version>`.
        config: the complete model configuration.
        log: takes one line.

    Raises:
        ModelError: the file is missing or broken, or the configuration does not fit the graph.
    """

    def __init__(self, version_folder: Path, config: Config, log: Callable[[str], None]) -> None:
        self.name: str = config["name"]
        self._log = log
        self._batched = int(config["max_batch_size"]) > 0
        path = model_file(version_folder, config)
        options = session_options(config, log)
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes share no base but this
            raise ModelError(f"'{path}' cannot be loaded: {_one_line(error)}") from error
        self._run_options = run_options(config)
        # An initializer that is also an input may be left out of a request.
        self._check_all("input", config, [*self._session.get_inputs(), *self._session.get_overridable_initializers()])
        self._check_all("output", config, self._session.get_outputs())

    def run(self, jobs: Sequence[Job]) -> list[Arrays | ModelError]:
        """The outputs of each job, in order, or why it failed; jobs of equal shapes share one run."""
        results: dict[int, Arrays | ModelError] = {}
        for indices in self._groups(jobs):
            group = [jobs[index] for index in indices]
            results |= dict(zip(indices, self._run_group(group), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _check_all(self, kind: str, config: Config, nodes: Iterable[ort.NodeArg]) -> None:
        graph = {node.name: GraphTensor.of(node) for node in nodes}
        for declaration in config[kind]:
            self._check(kind, declaration, graph)

    def _check(self, kind: str, declaration: Mapping[str, Any], graph: Mapping[str, GraphTensor]) -> None:
        name = declaration["name"]
        where = f"model '{self.name}': {kind} '{name}'"
        if name not in graph:
            raise ModelError(f"{where} is not in the graph, which has {sorted(graph)}")
        tensor = graph[name]
        if declaration["data_type"] != tensor.data_type:
            raise ModelError(f"{where} is declared {declaration['data_type']}; the graph has {tensor.data_type}")
        shape = declaration["reshape"]["shape"] if "reshape" in declaration else declaration["dims"]
        dims = [int(dim) for dim in shape]
        declared = [-1, *dims] if self._batched else dims
        if not _dims_fit(declared, tensor.dims):
            raise ModelError(f"{where} is declared {declared}; the graph has {list(tensor.dims)}")

    def _groups(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Indices of the jobs that can share a run: the same tensors, types and shapes behind the batch dimension."""
        if not self._batched:
            return [[index] for index in range(len(jobs))]
        groups: dict[Any, list[int]] = {}
        for index, job in enumerate(jobs):
            key = frozenset((name, array.dtype, array.shape[1:]) for name, array in job.inputs.items())
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _run_group(self, jobs: Sequence[Job]) -> list[Arrays | ModelError]:
        try:
            return list(self._run_together(jobs))
        except ModelError as error:
            if len(jobs) == 1:
                return [error]
        # One of them spoils the run for all: each on its own, so that it fails alone.
        return [result for job in jobs for result in self._run_group([job])]

    def _run_together(self, jobs: Sequence[Job]) -> list[Arrays]:
        names = list(dict.fromkeys(name for job in jobs for name in job.outputs))
        inputs = jobs[0].inputs
        if len(jobs) > 1:
            inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in inputs}
        outputs = self._run(inputs, names)
        if (name := _not_finite(outputs)) is not None:
            raise self._fault_of(inputs, name)
        if not self._batched:
            return [outputs]
        rows = [len(next(iter(job.inputs.values()))) for job in jobs]
        return self._split(outputs, rows, jobs)

    def _run(self, inputs: Arrays, names: list[str]) -> Arrays:
        feeds = {name: self._to_graph(name, array) for name, array in inputs.items()}
        try:
            values = self._session.run(names, feeds, self._run_options)
        except Exception as error:
            told = f"model '{self.name}' cannot run this request: {_one_line(error)}"
            self._log(told)  # with what a client is not told: paths of the build
            raise ModelError(without_internals(told)) from error
        return dict(zip(names, values, strict=True))

    def _fault_of(self, inputs: Arrays, output: str) -> ModelError:
        """Whose fault it is that an output is not finite: the inputs', where one of them is not, or nearly so."""
        if (name := _not_finite(inputs)) is not None:
            return ModelError(
                f"model '{self.name}': input '{name}' holds NaN or infinity; every value of it must be a finite number"
            )
        for name, array in inputs.items():
            if np.issubdtype(array.dtype, np.floating) and (peak := float(np.abs(array).max(initial=0))) > _TOO_LARGE:
                return ModelError(
                    f"model '{self.name}': input '{name}' reaches {peak:.1e}, too large a number to be computed with"
                )
        return NotFiniteError(f"model '{self.name}': output '{output}' holds values that are not finite")

    def _to_graph(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """ONNX Runtime takes text as str; Triton carries bytes."""
        if array.dtype != np.object_:
            return array
        try:
            texts = [decode(item) for item in array.flat]
        except InvalidRequest as error:
            raise ModelError(f"model '{self.name}': input '{name}' is not UTF-8 text") from error
        return np.array(texts, dtype=np.object_).reshape(array.shape)

    def _split(self, outputs: Arrays, rows: Sequence[int], jobs: Sequence[Job]) -> list[Arrays]:
        for name, array in outputs.items():
            if len(array) != sum(rows):
                raise ModelError(
                    f"model '{self.name}': output '{name}' has {len(array)} rows for a batch of {sum(rows)}"
                )
        ends = np.cumsum(rows)
        return [
            {name: outputs[name][end - count : end] for name in job.outputs}
            for job, end, count in zip(jobs, ends, rows, strict=True)
        ]


def _not_finite(arrays: Arrays) -> str | None:
    """The first of the tensors that holds NaN or infinity, by name."""
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return name
    return None


def _dims_fit(declared: Sequence[int], graph: Sequence[int]) -> bool:
    """A fixed dimension of the graph must be declared as it is; one of any size may be declared fixed."""
    return len(declared) == len(graph) and all(
        theirs in (-1, mine) for mine, theirs in zip(declared, graph, strict=True)
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
