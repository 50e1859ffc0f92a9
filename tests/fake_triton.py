"""A stand-in for the server's gRPC, over a real connection: `ModelStreamInfer`, which asks a model that streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

Tensors = dict[str, np.ndarray]
Answer = Callable[[str, Tensors], Iterator[Tensors | str]]
"""Of a model's name and its inputs to its responses; a string is the message of an error."""


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers until `stop`. `requests` are those that came, over the connections `peers`; `ended` says, of each whose
    answer has ended, whether its call had been cancelled.
    """

    def __init__(self, answer: Answer, workers: int = 32) -> None:
        self._answer = answer
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.peers: set[str] = set()
        self.ended: list[bool] = []
        self._server = grpc.server(ThreadPoolExecutor(workers))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._server.start()

    def ModelStreamInfer(  # noqa: N802
        self, requests: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        self.peers.add(context.peer())
        (request,) = requests
        self.requests.append(request)
        try:
            for response in self._answer(request.model_name, inputs_of(request)):
                if not context.is_active():
                    break
                yield response_of(response)
        finally:
            self.ended.append(not context.is_active())

    def stop(self) -> None:
        """End at once: whoever still waits for a response gets an error."""
        self._server.stop(None).wait()


def inputs_of(request: service_pb2.ModelInferRequest) -> Tensors:
    """The tensors of a request by name."""
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: _array(tensor.datatype, tensor.shape, content) for tensor, content in pairs}


def _array(datatype: str, shape: Any, content: bytes) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(content).reshape(shape)
    return np.frombuffer(content, triton_to_np_dtype(datatype)).reshape(shape)


def response_of(response: Tensors | str) -> service_pb2.ModelStreamInferResponse:
    """The message of a response, or of an error."""
    if isinstance(response, str):
        return service_pb2.ModelStreamInferResponse(error_message=response)
    message = service_pb2.ModelStreamInferResponse()
    for name, array in response.items():
        datatype = np_to_triton_dtype(array.dtype)
        message.infer_response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        content = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
        message.infer_response.raw_output_contents.append(content)
    return message
