"""A server behind the guard that does what it is told: answers, blocks, streams for as long as it is read, or dies."""

from __future__ import annotations

import asyncio
import struct
import threading
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from attune_client.protocol.models import MUSIC_SAMPLE_RATE
from attune_ensemble.serving.lease import is_held

ECHO = """name: "echo" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: -1 } input { name: "word" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: -1 }"""
SLOW = """name: "slow"
input { name: "word" data_type: TYPE_STRING dims: 1 }
input { name: "deadline_s" data_type: TYPE_FP32 dims: 1 optional: true }
input { name: "lease" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
parameters { key: "max_concurrent" value { string_value: "2" } }
parameters { key: "max_waiting" value { string_value: "2" } }"""
COUNTER = """name: "counter"
input { name: "word" data_type: TYPE_STRING dims: 1 }
input { name: "duration_s" data_type: TYPE_FP32 dims: 1 optional: true }
input { name: "lease" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
output { name: "music" data_type: TYPE_FP32 dims: [ -1, -1 ] }
model_transaction_policy { decoupled: true }
parameters { key: "calls" value { string_value: "slow unless duration_s,echo" } }
parameters { key: "calls_streaming" value { string_value: "slow unless duration_s" } }"""
ABOVE = """name: "above"
input { name: "word" data_type: TYPE_STRING dims: 1 }
input { name: "duration_s" data_type: TYPE_FP32 dims: 1 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
parameters { key: "calls" value { string_value: "counter" } }"""
PARTED = """name: "parted"
input { name: "word" data_type: TYPE_STRING dims: 1 }
input { name: "more" data_type: TYPE_STRING dims: 1 optional: true }
input { name: "lease" data_type: TYPE_STRING dims: 1 optional: true }
input { name: "part" data_type: TYPE_INT32 dims: 1 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: 1 } output { name: "next_part" data_type: TYPE_INT32 dims: 1 }
model_transaction_policy { decoupled: true }"""
CONFIGS = {text.split('"')[1]: text for text in (ECHO, SLOW, COUNTER, ABOVE, PARTED)}
PART_LENGTH = 2
"""How many responses of `parted` a part has."""


class FakeUpstream:
    """Listens on a unix socket in `folder`; `seen` are the requests that came, `ended` why those that block ended.

    Each response of a stream has an id of `digits` digits.
    """

    def __init__(self, folder: Path) -> None:
        self.url = f"unix:{folder / 'fake'}"
        self.seen: list[service_pb2.ModelInferRequest] = []
        self.ended: list[str] = []
        self.written = 0
        self.digits = 1
        self.release = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        methods = {
            "RepositoryIndex": grpc.unary_unary_rpc_method_handler(self._index),
            "ModelConfig": grpc.unary_unary_rpc_method_handler(self._config),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
        }
        handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(self.url)
        await self._server.start()
        self._begun.set()

    def die(self) -> None:
        """End as a process does that is killed: every connection breaks."""
        asyncio.run_coroutine_threadsafe(self._server.stop(grace=0), self._loop).result(10)

    def close(self) -> None:
        """End, and the thread with it."""
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _index(self, message: bytes, context: Any) -> bytes:
        index = service_pb2.RepositoryIndexResponse()
        for name in CONFIGS:
            index.models.add(name=name, version="1", state="READY")
        return index.SerializeToString()

    async def _config(self, message: bytes, context: Any) -> bytes:
        name = service_pb2.ModelConfigRequest.FromString(message).name
        config = text_format.Parse(CONFIGS[name], model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config).SerializeToString()

    async def _infer(self, message: bytes, context: Any) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(message)
        self.seen.append(request)
        if request.model_name in ("slow", "above"):
            if word_of(request) == b"fails":
                await context.abort(
                    grpc.StatusCode.INTERNAL, "Stub process 'slow_0_0' is not healthy. /srv/models/x.py"
                )
            await self._until_let_go(request, hears=word_of(request) != b"deaf")
        return service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id).SerializeToString()

    async def _stream(self, requests: Any, context: Any) -> None:
        async for message in requests:
            request = service_pb2.ModelInferRequest.FromString(message)
            self.seen.append(request)
            if request.model_name == "parted":
                await self._stream_part(request, context)
                continue
            if word_of(request) == b"fails":
                response = service_pb2.ModelStreamInferResponse(error_message="server_busy: no room; try again in 9 s")
                await context.write(response.SerializeToString())
                continue
            for number in range(int(word_of(request))):
                response = service_pb2.ModelStreamInferResponse()
                response.infer_response.id = str(number).zfill(self.digits)
                if number:  # the first one says what will be played
                    response.infer_response.outputs.add(
                        name="music", datatype="FP32", shape=[MUSIC_SAMPLE_RATE // 2, 2]
                    )
                await context.write(response.SerializeToString())
                self.written += 1
            if word_of(request) == b"2":  # and then never ends by itself
                await self._until_let_go(request)

    async def _stream_part(self, request: service_pb2.ModelInferRequest, context: Any) -> None:
        """As many responses as `word` says, in parts for whoever asks for them."""
        part, count = part_of(request), int(word_of(request))
        first = 0 if part is None else part * PART_LENGTH
        end = count if part is None else min(count, first + PART_LENGTH)
        for number in range(first, end):
            response = service_pb2.ModelStreamInferResponse()
            response.infer_response.id = str(number)
            await context.write(response.SerializeToString())
        if end < count:
            response = service_pb2.ModelStreamInferResponse()
            response.infer_response.outputs.add(name="next_part", datatype="INT32", shape=[1])
            response.infer_response.raw_output_contents.append(struct.pack("<i", part + 1))
            await context.write(response.SerializeToString())

    async def _until_let_go(self, request: service_pb2.ModelInferRequest, *, hears: bool = True) -> None:
        """Go on until it is released, or, if it `hears`, its lease has ended."""
        token = lease_of(request)
        try:
            while not self.release.is_set():
                if hears and token is not None and not is_held(token):
                    self.ended.append("lease")
                    return
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


def word_of(request: service_pb2.ModelInferRequest) -> bytes:
    """The element of the input `word`."""
    return _text(request, "word") or b""


def lease_of(request: service_pb2.ModelInferRequest) -> str | None:
    """The token of a request's lease."""
    token = _text(request, "lease")
    return None if token is None else token.decode()


def part_of(request: service_pb2.ModelInferRequest) -> int | None:
    """The number of the part that is asked for."""
    for index, tensor in enumerate(request.inputs):
        if tensor.name == "part":
            if request.raw_input_contents:
                return int(struct.unpack("<i", request.raw_input_contents[index])[0])
            return int(tensor.contents.int_contents[0])
    return None


def _text(request: service_pb2.ModelInferRequest, name: str) -> bytes | None:
    for index, tensor in enumerate(request.inputs):
        if tensor.name == name:
            if request.raw_input_contents:
                return bytes(request.raw_input_contents[index][4:])
            return bytes(tensor.contents.bytes_contents[0])
    return None
