"""Clients of a guard that a test starts, and the requests that they send to a `FakeUpstream` behind it."""

from __future__ import annotations

import struct
import time
from typing import Any, NamedTuple

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

SOON_S = 15.0
"""How long anything may take, on a machine that does something else too."""


def channel_to(guard: Any) -> grpc.Channel:
    """A connection of its own: else channels to one address share one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(guard.address, options=options)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Named(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Says who calls, as a proxy does that is trusted."""

    def __init__(self, client: str) -> None:
        self._client = client

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_name(client_call_details), request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_name(client_call_details), request_iterator)

    def _with_name(self, details: Any) -> _Details:
        metadata = [*(details.metadata or ()), ("attune-client", self._client)]
        return _Details(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


def stub_to(channel: grpc.Channel, client: str | None = None) -> Any:
    """What calls over that channel, under the name of a client where one is given."""
    if client is not None:
        channel = grpc.intercept_channel(channel, _Named(client))
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def words(model, word, **more):
    request = service_pb2.ModelInferRequest(model_name=model, **more)
    request.inputs.add(name="word", datatype="BYTES", shape=[1]).contents.bytes_contents.append(word.encode())
    return request


def floats(*values, model="echo", shape=None):
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=shape or [1, len(values)])
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return request


def until(condition):
    deadline_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def failure(call):
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value
