"""Requests and responses as the messages of KServe's protocol, which tritonclient brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor

from attune_client.protocol.errors import ServerError
from attune_client.protocol.inputs import check_inputs
from attune_client.protocol.tensors import DType, ModelSpec, Tensors

__all__ = ["infer_request", "read_response", "request_message"]


def request_message(model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> service_pb2.ModelInferRequest:
    """Return a request to a model; raises `InvalidOption` for inputs that are not the model's (see `check_inputs`)."""
    check_inputs(model, inputs)
    return infer_request(model, inputs)


def infer_request(
    model: ModelSpec, inputs: Mapping[str, npt.NDArray[Any]], request_id: str = ""
) -> service_pb2.ModelInferRequest:
    """The message that asks a model; the inputs have their declared types."""
    message = service_pb2.ModelInferRequest(model_name=model.name, id=request_id)
    for name, array in inputs.items():
        dtype = model.input(name).dtype
        message.inputs.add(name=name, datatype=dtype.value, shape=array.shape)
        message.raw_input_contents.append(_raw(array, dtype))
    return message


def _raw(array: npt.NDArray[Any], dtype: DType) -> bytes:
    if dtype is not DType.BYTES:
        return array.tobytes()
    serialised: npt.NDArray[np.object_] = serialize_byte_tensor(array)
    return bytes(serialised.item()) if serialised.size else b""


def read_response(response: service_pb2.ModelInferResponse) -> Tensors:
    """Return every tensor of a response, by name; raises `ServerError` for a malformed one."""
    result = InferResult(response)
    return {output.name: _read_output(result, output.name) for output in response.outputs}


def _read_output(result: InferResult, name: str) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = result.as_numpy(name)
    except (ValueError, TypeError, IndexError) as error:  # the bytes are not those of its shape and type
        raise ServerError(f"the server's answer cannot be read: {name}: {error}") from error
    return values
