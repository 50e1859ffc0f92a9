"""Stand-ins for what Triton's Python stub hands a model (`pb_utils`), and what tests of an adapter do with them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from attune_client.protocol.errors import from_wire
from attune_client.protocol.models import MODELS, MUSIC_GENERATOR, MUSIC_PROMPT
from attune_client.protocol.tensors import Callee
from attune_ensemble.call import CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter

WAIT_S, SOON_S = 5.0, 1.0


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class FakeTritonError:
    INVALID_ARG, INTERNAL, CANCELLED, UNAVAILABLE = "invalid", "internal", "cancelled", "unavailable"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor] | None = None, error: FakeTritonError | None = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[FakeTensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> FakeTritonError:
        assert self._error is not None
        return self._error

    def arrays(self) -> dict[str, Any]:
        return {tensor.name(): tensor.as_numpy().tolist() for tensor in self._tensors}


class FakeSender:
    def __init__(self) -> None:
        self.sent: list[FakeResponse] = []
        self.cancelled = False
        self.finished = threading.Event()

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self.sent.append(response)
        if flags:
            self.finished.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class FakeRequest:
    def __init__(self, request_id: str = "", **inputs: np.ndarray) -> None:
        self.id = request_id
        self._inputs = [FakeTensor(name, array) for name, array in inputs.items()]
        self.sender = FakeSender()

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> FakeSender:
        return self.sender


class FakeLogger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log_error(self, line: str) -> None:
        self.lines.append(line)

    def log_info(self, line: str) -> None:
        self.lines.append(line)


class FakePb:
    """`called` answers what the adapter calls through the stub: the model's name and its inputs, to a response."""

    Tensor, InferenceResponse, TritonError = FakeTensor, FakeResponse, FakeTritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL, TRITONSERVER_MEMORY_CPU = 1, 0

    def __init__(self, called: Callable[[str, dict[str, np.ndarray]], Any] | None = None) -> None:
        self.Logger = FakeLogger()
        self.request_ids: list[str] = []
        self._called = called

    def PreferredMemory(self, kind: int, device: int) -> tuple[int, int]:  # noqa: N802
        return kind, device

    def InferenceRequest(  # noqa: N802
        self, *, model_name: str, request_id: str, inputs: list[FakeTensor], **_: Any
    ) -> Any:
        answer = self._called
        self.request_ids.append(request_id)
        arrays = {tensor.name(): tensor.as_numpy() for tensor in inputs}

        class Request:
            def exec(self) -> Any:  # never decoupled, which deadlocks
                assert answer is not None
                return answer(model_name, arrays)

        return Request()


Streams = Callable[[str, dict[str, np.ndarray]], Iterator[dict[str, np.ndarray] | str]]


ARGS = {
    "model_config": json.dumps({"parameters": {"engine": {"string_value": "composer"}}}),
    "model_instance_kind": "CPU",
    "model_instance_device_id": "0",
    "model_repository": "/models/music_prompt",
    "model_version": "1",
}


def make(pb: FakePb, spec: Any = MUSIC_PROMPT, **settings: int) -> Adapter:
    """The adapter of a model that may call every other one."""
    parameters = {name: {"string_value": str(value)} for name, value in settings.items()}
    spec = replace(spec, calls=tuple(map(Callee, MODELS)))
    return Adapter(spec, ARGS | {"model_config": json.dumps({"parameters": parameters})}, pb)


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=np.object_)


def outcome(request: FakeRequest) -> Any:
    """The error that ended a request, or its last response."""
    assert request.sender.finished.wait(WAIT_S)
    last = request.sender.sent[-1]
    return from_wire(last.error().message()) if last.has_error() else last


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


class Counting:
    """A stream of chunks that says how many were made, and whether it was closed."""

    def __init__(self, before_each: Callable[[int], None] = lambda index: None) -> None:
        self.made = 0
        self.closed = threading.Event()
        self._before_each = before_each

    def __call__(self, inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        assert LEASE not in inputs
        try:
            for index in range(100):
                self._before_each(index)
                self.made += 1
                yield {"music": np.full((2, 2), index)}
        finally:
            self.closed.set()


class Dead:
    """A model that was killed: it answers nothing, or nothing after its first `responses`."""

    def __init__(self, responses: int = 0) -> None:
        self._responses = responses
        self.asked = threading.Event()
        self.lease = ""
        self.revived = threading.Event()

    def __call__(self, name: str, inputs: dict[str, np.ndarray]) -> Any:
        self.lease = inputs[LEASE][0].decode() if LEASE in inputs else ""
        self.asked.set()
        return self._stream() if name == MUSIC_GENERATOR.name else self._block()

    def _stream(self) -> Iterator[dict[str, np.ndarray]]:
        for index in range(self._responses):
            yield {"music": np.full((1, 2), index, np.float32)}
        self._block()

    def _block(self) -> FakeResponse:
        self.revived.wait(10 * WAIT_S)
        return FakeResponse()


class Panic(BaseException):
    """Stands for the panic of a library in Rust, which is no Exception."""
