"""The Python-based onnxruntime backend on the real server, with tiny graphs.

pytest tests/integration/test_onnx_backend.py
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper, numpy_helper, save_model
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from attune_ensemble.serving.launcher.server import Server

pytestmark = pytest.mark.server

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
OPSET = 20
IR_VERSION = 10

# name, type and shape of a graph's input or output
Value = tuple[str, int, list[str | int]]


def save_graph(folder: Path, nodes: list[Any], inputs: list[Value], outputs: list[Value], constants: Any = ()) -> None:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        initializer=list(constants),
    )
    (folder / "1").mkdir(parents=True)
    opset = helper.make_opsetid("", OPSET)
    save_model(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION), folder / "1" / "model.onnx")


def save_config(folder: Path, text: str) -> None:
    header = f'name: "{folder.name}"\nbackend: "onnxruntime"\ninstance_group {{ count: 1 kind: KIND_CPU }}\n'
    (folder / "config.pbtxt").write_text(header + text)


def save_table(folder: Path) -> None:
    """A look-up of a row by its number, which fails when there is no such row; batches."""
    table = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "table")
    save_graph(
        folder,
        [helper.make_node("Gather", ["table", "row"], ["values"]), helper.make_node("Neg", ["values"], ["negated"])],
        [("row", INT64, ["batch", "count"])],
        [("values", FLOAT, ["batch", "count", 3]), ("negated", FLOAT, ["batch", "count", 3])],
        [table],
    )
    save_config(
        folder,
        """
        max_batch_size: 8
        input { name: "row" data_type: TYPE_INT64 dims: -1 }
        output { name: "values" data_type: TYPE_FP32 dims: [ -1, 3 ] }
        output { name: "negated" data_type: TYPE_FP32 dims: [ -1, 3 ] }
        dynamic_batching { max_queue_delay_microseconds: 300000 }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
        parameters { key: "nonsense" value { string_value: "1" } }
        """,
    )


def save_transpose(folder: Path) -> None:
    """A matrix of any size; does not batch."""
    save_graph(
        folder,
        [helper.make_node("Transpose", ["matrix"], ["transposed"])],
        [("matrix", FLOAT, ["rows", "columns"])],
        [("transposed", FLOAT, ["columns", "rows"])],
    )
    save_config(
        folder,
        """
        max_batch_size: 0
        input { name: "matrix" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        output { name: "transposed" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        """,
    )


def save_shout(folder: Path) -> None:
    """Text with an exclamation mark; the configuration names the inputs only."""
    mark = helper.make_tensor("mark", STRING, [1], [b"!"])
    save_graph(
        folder,
        [helper.make_node("StringConcat", ["text", "mark"], ["shout"])],
        [("text", STRING, ["batch", 1])],
        [("shout", STRING, ["batch", 1])],
        [mark],
    )
    save_config(folder, 'max_batch_size: 4\ninput { name: "text" data_type: TYPE_STRING dims: 1 }\n')


TYPES = {
    "flag": (TensorProto.BOOL, np.bool_),
    "tiny": (TensorProto.INT8, np.int8),
    "byte": (TensorProto.UINT8, np.uint8),
    "short": (TensorProto.INT16, np.int16),
    "half": (TensorProto.FLOAT16, np.float16),
    "double": (TensorProto.DOUBLE, np.float64),
}


def save_types(folder: Path) -> None:
    """Every type comes out as it went in; there is no configuration at all."""
    save_graph(
        folder,
        [helper.make_node("Identity", [name], [f"same_{name}"]) for name in TYPES],
        [(name, kind, [2]) for name, (kind, _) in TYPES.items()],
        [(f"same_{name}", kind, [2]) for name, (kind, _) in TYPES.items()],
    )


def save_total(folder: Path) -> None:
    """One number for each row, and no configuration: batching is derived, and the server reshapes [] to [1]."""
    save_graph(
        folder,
        [helper.make_node("ReduceSum", ["row", "axis"], ["total"], keepdims=0)],
        [("row", FLOAT, ["batch", "n"])],
        [("total", FLOAT, ["batch"])],
        [numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.InferenceServerClient]:
    root = tmp_path_factory.mktemp("onnx")
    for save in (save_table, save_transpose, save_shout, save_types, save_total):
        save(root / "repository" / save.__name__.removeprefix("save_"))
    with Server(root / "repository", log_file=root / "server.log") as server:
        connection = grpc.InferenceServerClient(server.grpc_url)
        yield connection
        connection.close()


def infer(
    client: grpc.InferenceServerClient, model: str, outputs: tuple[str, ...] = (), **inputs: npt.NDArray[Any]
) -> grpc.InferResult:
    tensors = []
    for name, array in inputs.items():
        tensors.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
    return client.infer(model, tensors, outputs=wanted, client_timeout=30)


def counts(client: grpc.InferenceServerClient, model: str) -> tuple[int, int]:
    """Requests answered, and executions that took."""
    (statistics,) = client.get_inference_statistics(model).model_stats
    return statistics.inference_count, statistics.execution_count


def test_a_batching_model_answers_by_row(client):
    result = infer(client, "table", row=np.array([[0, 3], [1, 1]]))
    np.testing.assert_array_equal(result.as_numpy("values")[0], [[0, 1, 2], [9, 10, 11]])
    assert result.as_numpy("negated").shape == (2, 2, 3)


def test_only_the_requested_output_comes_back(client):
    result = infer(client, "table", outputs=("negated",), row=np.array([[2]]))
    assert [output.name for output in result.get_response().outputs] == ["negated"]
    np.testing.assert_array_equal(result.as_numpy("negated"), [[[-6, -7, -8]]])


def test_equal_shapes_share_an_execution(client):
    requests_before, executions_before = counts(client, "table")
    rows = [np.array([[number % 4]]) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda row: infer(client, "table", row=row).as_numpy("values"), rows))
    for row, values in zip(rows, results, strict=True):
        np.testing.assert_array_equal(values[0, 0], np.arange(3) + 3 * row[0, 0])
    requests, executions = counts(client, "table")
    assert requests - requests_before == 8
    assert executions - executions_before < 8


def test_a_bad_request_fails_alone(client):
    """Four requests meet in one batch; the one that asks for row 9 of 4 gets an error, the others their rows."""

    def ask(number: int) -> npt.NDArray[Any] | InferenceServerException:
        try:
            return infer(client, "table", row=np.array([[number]])).as_numpy("values")
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        first, bad, second, third = pool.map(ask, [1, 9, 2, 3])
    for number, values in ((1, first), (2, second), (3, third)):
        np.testing.assert_array_equal(values[0, 0], np.arange(3) + 3 * number)
    assert isinstance(bad, InferenceServerException)
    assert bad.status() == "StatusCode.INVALID_ARGUMENT"
    assert "model 'table' cannot run this request" in bad.message()
    assert "\n" not in bad.message()
    assert "Traceback" not in bad.message()


def test_different_lengths_are_answered_together(client):
    def values_shape(length: int) -> tuple[int, ...]:
        return infer(client, "table", row=np.zeros((1, length), np.int64)).as_numpy("values").shape

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(values_shape, (1, 2, 5))) == [(1, 1, 3), (1, 2, 3), (1, 5, 3)]


def test_a_model_that_does_not_batch(client):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(infer(client, "transpose", matrix=matrix).as_numpy("transposed"), matrix.T)


def test_text_goes_in_and_comes_out(client):
    text = np.array([["hello"], ["naïve ☺"], [""]], dtype=np.object_)
    shouted = infer(client, "shout", text=text).as_numpy("shout")
    assert [word.decode() for word in shouted[:, 0]] == ["hello!", "naïve ☺!", "!"]


def test_bytes_that_are_not_text_are_refused(client):
    with pytest.raises(InferenceServerException, match="model 'shout': input 'text' is not UTF-8 text"):
        infer(client, "shout", text=np.array([[b"\xff\xfe"]], dtype=np.object_))


def test_every_type_passes_through(client):
    inputs = {name: np.array([0, 1], kind) for name, (_, kind) in TYPES.items()}
    result = infer(client, "types", **inputs)
    for name, array in inputs.items():
        same = result.as_numpy(f"same_{name}")
        assert same.dtype == array.dtype
        np.testing.assert_array_equal(same, array)


def test_a_configuration_is_derived_from_the_graph(client):
    config = client.get_model_config("total", as_json=True)["config"]
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config["input"]] == [
        ("row", "TYPE_FP32", ["-1"])
    ]
    result = infer(client, "total", row=np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    np.testing.assert_array_equal(result.as_numpy("total"), [[6], [15]])


def test_fixed_dimensions_do_not_batch(client):
    config = client.get_model_config("types", as_json=True)["config"]
    assert config.get("max_batch_size", 0) == 0
    assert config["input"][0]["dims"] == ["2"]
