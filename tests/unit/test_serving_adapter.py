"""What adapters share, with a stand-in for Triton's pb_utils: `pytest tests/unit/test_serving_adapter.py`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption, RequestTimeout, ServerError, SilentAudio
from attune_client.protocol.models import MUSIC_GENERATOR, MUSIC_PROMPT, SPEECH_TO_TEXT
from attune_ensemble.serving.adapter import LEASE, Adapter
from attune_ensemble.serving.lease import Lease, is_held

WAIT_S = 5.0


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
    def __init__(self, **inputs: np.ndarray) -> None:
        self._inputs = [FakeTensor(name, array) for name, array in inputs.items()]
        self.sender = FakeSender()

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

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
    """`called` answers what the adapter calls: the model's name and its inputs, to a response or several."""

    Tensor, InferenceResponse, TritonError = FakeTensor, FakeResponse, FakeTritonError
    TRITONSERVER_RESPONSE_COMPLETE_FINAL, TRITONSERVER_MEMORY_CPU = 1, 0

    def __init__(self, called: Callable[[str, dict[str, np.ndarray]], Any] | None = None) -> None:
        self.Logger = FakeLogger()
        self._called = called

    def PreferredMemory(self, kind: int, device: int) -> tuple[int, int]:  # noqa: N802
        return kind, device

    def InferenceRequest(self, *, model_name: str, inputs: list[FakeTensor], **_: Any) -> Any:  # noqa: N802
        answer = self._called
        arrays = {tensor.name(): tensor.as_numpy() for tensor in inputs}

        class Request:
            def exec(self, decoupled: bool = False) -> Any:
                assert answer is not None
                return answer(model_name, arrays)

        return Request()


ARGS = {
    "model_config": json.dumps({"parameters": {"engine": {"string_value": "composer"}}}),
    "model_instance_kind": "CPU",
    "model_instance_device_id": "0",
    "model_repository": "/models/music_prompt",
    "model_version": "1",
}


def make(pb: FakePb, spec: Any = MUSIC_PROMPT) -> Adapter:
    return Adapter(spec, ARGS, pb)


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=np.object_)


def test_settings_device_and_folder_come_from_the_server():
    adapter = make(FakePb())
    assert adapter.settings == {"engine": "composer"}
    assert adapter.device == "cpu"
    assert str(adapter.folder) == "/models/music_prompt/1"
    on_gpu = ARGS | {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    assert Adapter(MUSIC_PROMPT, on_gpu, FakePb()).device == "cuda:1"


def test_outputs_take_the_declared_type():
    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"prompt": "slow " + inputs["text"][0].decode(), "similarity": 0.5}

    (response,) = make(FakePb()).answer([FakeRequest(text=text("piano"))], describe)
    prompt, similarity = (tensor.as_numpy() for tensor in response.output_tensors())
    assert prompt.tolist() == ["slow piano"]
    assert prompt.dtype == np.object_
    assert similarity.tolist() == [0.5]
    assert similarity.dtype == np.float32


def test_one_failing_request_fails_alone():
    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        if "text" not in inputs:
            raise InvalidOption("give an emotion or a text")
        return {"prompt": inputs["text"]}

    good, bad = make(FakePb()).answer([FakeRequest(text=text("a")), FakeRequest()], describe)
    assert good.arrays() == {"prompt": [b"a"]}
    assert bad.error().message() == "invalid_option: give an emotion or a text"
    assert bad.error().code() == FakeTritonError.INVALID_ARG


def test_a_programming_error_goes_to_the_log_and_not_to_the_client():
    pb = FakePb()
    (response,) = make(pb).answer([FakeRequest()], lambda inputs: {"prompt": inputs["secret"]})
    assert response.error().message() == "server_error: music_prompt failed; see the server's log"
    assert response.error().code() == FakeTritonError.INTERNAL
    assert "Traceback" in pb.Logger.lines[0]
    assert "KeyError: 'secret'" in pb.Logger.lines[0]


def test_requests_overlap_when_answered_concurrently():
    meeting = threading.Barrier(2, timeout=WAIT_S)  # passes only if both requests are at work at once

    def describe(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        meeting.wait()
        return {"prompt": inputs["text"]}

    requests = [FakeRequest(text=text(word)) for word in ("a", "b")]
    make(FakePb()).answer_concurrently(requests, describe)
    for request, word in zip(requests, (b"a", b"b"), strict=True):
        assert request.sender.finished.wait(WAIT_S)
        assert [response.arrays() for response in request.sender.sent] == [{"prompt": [word]}]


class Counting:
    """A stream of chunks that says how many were made, and whether it was closed."""

    def __init__(self, before_each: Callable[[int], None] = lambda index: None) -> None:
        self.made = 0
        self.closed = threading.Event()
        self._before_each = before_each

    def __call__(self, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        assert LEASE not in inputs
        try:
            for index in range(100):
                self._before_each(index)
                self.made += 1
                yield {"music": np.full((2, 2), index)}
        finally:
            self.closed.set()


def test_a_stream_sends_each_item_and_ends():
    request = FakeRequest()
    make(FakePb(), MUSIC_GENERATOR).stream([request], lambda inputs: ({"engine": name} for name in ("a", "b")))
    assert request.sender.finished.wait(WAIT_S)
    assert [response.arrays() for response in request.sender.sent] == [{"engine": ["a"]}, {"engine": ["b"]}]


def test_a_cancelled_stream_makes_at_most_one_more_chunk():
    request = FakeRequest()

    def cancel_at_third(index: int) -> None:
        request.sender.cancelled = index == 3

    chunks = Counting(cancel_at_third)
    make(FakePb(), MUSIC_GENERATOR).stream([request], chunks)
    assert request.sender.finished.wait(WAIT_S)
    assert chunks.closed.is_set()
    assert (len(request.sender.sent), chunks.made) == (3, 4)


def test_a_stream_stops_when_its_lease_ends():
    lease = Lease()
    with lease:
        token = lease.token

        def give_up_at_third(index: int) -> None:
            if index == 3:
                lease.__exit__()

        chunks = Counting(give_up_at_third)
        request = FakeRequest(lease=text(token))
        make(FakePb(), MUSIC_GENERATOR).stream([request], chunks)
        assert request.sender.finished.wait(WAIT_S)
    assert (len(request.sender.sent), chunks.made) == (3, 4)


def test_a_stream_that_fails_sends_what_it_had_and_the_error():
    def fail_at_second(index: int) -> None:
        if index == 2:
            raise InvalidOption("no such engine")

    request = FakeRequest()
    make(FakePb(), MUSIC_GENERATOR).stream([request], Counting(fail_at_second))
    assert request.sender.finished.wait(WAIT_S)
    assert [response.has_error() for response in request.sender.sent] == [False, False, True]


def test_a_call_returns_tensors_by_name():
    def called(name: str, inputs: dict[str, np.ndarray]) -> FakeResponse:
        assert name == SPEECH_TO_TEXT.name
        return FakeResponse([FakeTensor("transcript", inputs["audio"])])

    answer = make(FakePb(called)).call("speech_to_text", {"audio": text("hello")})
    assert answer["transcript"].tolist() == [b"hello"]


def test_a_call_raises_what_the_model_answered():
    message = "Failed to process the request(s), message: silent_audio: nothing to hear"
    pb = FakePb(lambda name, inputs: FakeResponse(error=FakeTritonError(message)))
    with pytest.raises(SilentAudio, match=r"^nothing to hear$"):
        make(pb).call("speech_to_text", {"audio": text("")})
    pb = FakePb(lambda name, inputs: FakeResponse(error=FakeTritonError("Stub process is not healthy.")))
    with pytest.raises(ServerError, match="not healthy"):
        make(pb).call("speech_to_text", {"audio": text("")})
    assert "speech_to_text answered" in pb.Logger.lines[0]


def test_a_call_has_a_deadline():
    hold = threading.Event()
    pb = FakePb(lambda name, inputs: hold.wait(WAIT_S))
    with pytest.raises(RequestTimeout, match=r"speech_to_text gave no answer within 0\.05 s"):
        make(pb).call("speech_to_text", {"audio": text("")}, timeout_s=0.05)
    hold.set()


def test_closing_a_called_stream_ends_the_lease_and_drains_it():
    tokens: list[str] = []
    drained = threading.Event()

    def called(name: str, inputs: dict[str, np.ndarray]) -> Iterator[FakeResponse]:
        tokens.append(inputs[LEASE][0].decode())
        for index in range(1000):
            if not is_held(tokens[0]):
                break
            yield FakeResponse([FakeTensor("music", np.full((1, 2), index))])
        yield FakeResponse()  # the empty final response carries no tensors
        drained.set()

    stream = make(FakePb(called)).call_stream("music_generator", {"prompt": text("slow")})
    assert next(stream)["music"].tolist() == [[0, 0]]
    assert is_held(tokens[0])
    stream.close()
    assert not is_held(tokens[0])
    assert drained.wait(WAIT_S)


def test_a_lease_ends_with_its_holder():
    with Lease() as lease:
        assert is_held(lease.token)
        lease._file.close()  # what the kernel does when the holder dies
        assert not is_held(lease.token)
    with pytest.raises(InvalidOption):
        is_held("../../etc/passwd")
