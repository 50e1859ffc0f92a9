"""The onnxruntime backend's library part, without a server: `pytest tests/unit/test_serving_onnx.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from attune_ensemble.serving.onnx_backend.session import (
    Job,
    ModelError,
    NotFiniteError,
    OnnxModel,
    complete_config,
    session_options,
)

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save_graph(path: Path, inputs: list[Any], outputs: list[Any], node: Any, constants: tuple[Any, ...] = ()) -> None:
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        initializer=list(constants),
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def lookup(tmp_path: Path) -> Path:
    """A folder with a graph that looks rows of a table up: row [batch, n] → values [batch, n]."""
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32) * 10, "table")
    save_graph(
        tmp_path / "model.onnx",
        [("row", INT64, ["batch", "n"])],
        [("values", FLOAT, ["batch", "n"])],
        helper.make_node("Gather", ["table", "row"], ["values"]),
        (table,),
    )
    return tmp_path


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "lookup",
        "max_batch_size": 8,
        "input": [{"name": "row", "data_type": "TYPE_INT64", "dims": ["-1"]}],
        "output": [{"name": "values", "data_type": "TYPE_FP32", "dims": ["-1"]}],
    } | changes


def parameters(**values: str) -> dict[str, Any]:
    return {name: {"string_value": value} for name, value in values.items()}


def ignore(line: str) -> None:
    """A log that nobody reads."""


def job(*rows: list[int]) -> Job:
    return Job({"row": np.array(rows)}, ("values",))


class CountingSession:
    """The model's session, counting its runs."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.runs = 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        return self._session.run(*arguments)


def counted(model: OnnxModel) -> CountingSession:
    model._session = CountingSession(model._session)
    return model._session


def test_jobs_of_equal_shapes_share_a_run_and_keep_their_order(lookup):
    model = OnnxModel(lookup, config(), ignore)
    session = counted(model)
    results = model.run([job([1]), job([1, 2]), job([2], [3]), job([0, 3])])
    assert [result["values"].tolist() for result in results] == [[[10]], [[10, 20]], [[20], [30]], [[0, 30]]]
    assert session.runs == 2


def test_a_model_without_batching_runs_each_job(lookup):
    whole = config(max_batch_size=0)
    for kind in ("input", "output"):
        whole[kind][0]["dims"] = ["-1", "-1"]
    model = OnnxModel(lookup, whole, ignore)
    session = counted(model)
    assert [result["values"].tolist() for result in model.run([job([1]), job([2])])] == [[[10]], [[20]]]
    assert session.runs == 2


def test_the_job_that_spoils_a_batch_fails_alone(lookup):
    good, bad, other = OnnxModel(lookup, config(), ignore).run([job([1]), job([9]), job([3])])
    assert good["values"].tolist() == [[10]]
    assert other["values"].tolist() == [[30]]
    assert isinstance(bad, ModelError)
    assert str(bad).startswith("model 'lookup' cannot run this request: ")
    assert "\n" not in str(bad)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_numbers_that_are_none_are_an_error_of_their_request_alone(tmp_path, broken):
    table = numpy_helper.from_array(np.array([0, 10, broken, 30], np.float32), "table")
    save_graph(
        tmp_path / "model.onnx",
        [("row", INT64, ["batch", "n"])],
        [("values", FLOAT, ["batch", "n"])],
        helper.make_node("Gather", ["table", "row"], ["values"]),
        (table,),
    )
    good, bad = OnnxModel(tmp_path, config(), ignore).run([job([1]), job([2])])
    assert good["values"].tolist() == [[10]]
    assert isinstance(bad, NotFiniteError)
    assert str(bad) == "model 'lookup': output 'values' holds values that are not finite"


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "holds NaN or infinity"), (np.inf, "holds NaN or infinity"), (1e38, r"reaches 1\.0e\+38")],
)
def test_numbers_that_are_none_are_the_inputs_fault_where_they_came_in(tmp_path, value, words):
    save_graph(
        tmp_path / "model.onnx",
        [("row", FLOAT, ["batch", "n"])],
        [("values", FLOAT, ["batch", "n"])],
        helper.make_node("Mul", ["row", "row"], ["values"]),
    )
    dims = {"data_type": "TYPE_FP32", "dims": ["-1"]}
    tensors = {"input": [{"name": "row", **dims}], "output": [{"name": "values", **dims}]}
    jobs = [Job({"row": np.array([[number]], np.float32)}, ("values",)) for number in (2, value)]
    good, bad = OnnxModel(tmp_path, config(**tensors), ignore).run(jobs)
    assert good["values"].tolist() == [[4]]
    assert isinstance(bad, ModelError)
    assert not isinstance(bad, NotFiniteError)
    assert re.match(rf"model 'lookup': input 'row' {words}", str(bad))


def test_a_client_is_not_told_where_the_library_was_built(tmp_path):
    save_graph(
        tmp_path / "model.onnx",
        [("row", FLOAT, ["n"]), ("column", FLOAT, ["m"])],
        [("values", FLOAT, ["k"])],
        helper.make_node("Add", ["row", "column"], ["values"]),
    )
    dims = {"data_type": "TYPE_FP32", "dims": ["-1"]}
    tensors = {"input": [{"name": name, **dims} for name in ("row", "column")], "output": [{"name": "values", **dims}]}
    log: list[str] = []
    model = OnnxModel(tmp_path, config(max_batch_size=0, **tensors), log.append)
    arrays = {"row": np.zeros(2, np.float32), "column": np.zeros(3, np.float32)}
    [error] = model.run([Job(arrays, ("values",))])
    assert isinstance(error, ModelError)
    assert "/onnxruntime_src/" in log[-1], "the log has all of it"
    assert "/" not in str(error)
    assert "Add node" in str(error)


def test_an_output_without_the_batch_is_told(tmp_path):
    first_only = numpy_helper.from_array(np.array([True]), "first_only")
    save_graph(
        tmp_path / "model.onnx",
        [("row", INT64, ["batch", "n"])],
        [("values", INT64, ["kept", "n"])],
        helper.make_node("Compress", ["row", "first_only"], ["values"], axis=0),
        (first_only,),
    )
    declared = config(output=[{"name": "values", "data_type": "TYPE_INT64", "dims": ["-1"]}])
    alone, wrong = OnnxModel(tmp_path, declared, ignore).run([job([7]), job([1, 2], [3, 4])])
    assert alone["values"].tolist() == [[7]]
    assert "output 'values' has 1 rows for a batch of 2" in str(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": [{"name": "rows", "data_type": "TYPE_INT64", "dims": ["-1"]}]}, "input 'rows' is not in the graph"),
        (
            {"input": [{"name": "row", "data_type": "TYPE_INT32", "dims": ["-1"]}]},
            "declared TYPE_INT32; the graph has TYPE_INT64",
        ),
        (
            {"output": [{"name": "values", "data_type": "TYPE_FP32", "dims": ["-1", "3"]}]},
            r"declared \[-1, -1, 3\]; the graph has \[-1, -1\]",
        ),
        ({"parameters": parameters(execution_mode="2")}, "parameter 'execution_mode' cannot be '2'"),
        ({"parameters": parameters(intra_op_thread_count="two")}, "parameter 'intra_op_thread_count' cannot be 'two'"),
        ({"optimization": {"graph": {"level": 7}}}, "level is one of"),
        ({"default_model_filename": "other.onnx"}, "unable to find"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(lookup, changes, message):
    with pytest.raises(ModelError, match=message):
        OnnxModel(lookup, config(**changes), ignore)


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"model\.onnx' cannot be loaded"):
        OnnxModel(tmp_path, config(), ignore)


def test_official_parameters_reach_the_session():
    lines: list[str] = []
    wanted = parameters(
        intra_op_thread_count="3", inter_op_thread_count="2", execution_mode="1", enable_mem_arena="0",
        enable_mem_pattern="false", nonsense="1",
    )  # fmt: skip
    wanted |= {"session.set_denormal_as_zero": {"string_value": "1"}}
    wanted |= {"memory.enable_memory_arena_shrinkage": {"string_value": "cpu:0"}}
    options = session_options(config(parameters=wanted, optimization={"graph": {"level": -1}}), lines.append)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert lines == ["model 'lookup': the parameter 'nonsense' means nothing here and is ignored"]


def test_memory_is_given_back_when_asked_to(lookup):
    shrink = {"memory.enable_memory_arena_shrinkage": {"string_value": "cpu:0"}}
    (result,) = OnnxModel(lookup, config(parameters=shrink), ignore).run([job([2])])
    assert result["values"].tolist() == [[20]]


def test_what_the_configuration_leaves_open_comes_from_the_graph(lookup):
    empty = config(max_batch_size=0, input=[], output=[])
    complete_config(empty, lookup)
    assert (empty["max_batch_size"], empty["dynamic_batching"]) == (4, {})
    assert empty["input"] == [{"name": "row", "data_type": "TYPE_INT64", "dims": [-1]}]
    assert empty["output"] == [{"name": "values", "data_type": "TYPE_FP32", "dims": [-1]}]


def test_a_full_configuration_is_left_alone(tmp_path):
    full = config()
    complete_config(full, tmp_path)  # the folder is empty: the graph is not even looked for
    assert full == config()


def test_batching_cannot_be_asked_of_a_fixed_graph(tmp_path):
    save_graph(
        tmp_path / "model.onnx",
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        helper.make_node("Neg", ["x"], ["y"]),
    )
    with pytest.raises(ModelError, match="does not support batching"):
        complete_config(config(input=[], output=[]), tmp_path)
