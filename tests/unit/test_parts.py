"""Streams in parts, from the model that makes them to the client, who sees one stream:

pytest tests/unit/test_parts.py
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.protocol.errors import InvalidOption, RequestCancelled, ServerBusy
from attune_client.protocol.models import DEADLINE, MUSIC_GENERATOR, NEXT_PART, PART
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter
from attune_ensemble.serving.guard import Guard, GuardSettings
from attune_ensemble.serving.launcher.ports import free_ports
from attune_ensemble.serving.lease import Lease
from attune_ensemble.serving.own_server import OWN_URL
from tests.fake_stub import SOON_S, WAIT_S, Counting, FakePb, FakeRequest, make, outcome, text, wait_until
from tests.fake_triton import FakeTriton
from tests.fake_upstream import lease_of, part_of, word_of

CHUNK_BYTES = np.full((2, 2), 0, np.float32).nbytes
PER_PART = 4
"""How many chunks the parts of these tests have."""


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    made = make(FakePb(), MUSIC_GENERATOR, part_bytes=PER_PART * CHUNK_BYTES, max_concurrent=1, max_waiting=0)
    yield made
    made.close()


@pytest.fixture
def lease() -> Iterator[Lease]:
    with Lease() as held:
        yield held


def asked(lease: Lease, part: int, **more: np.ndarray) -> FakeRequest:
    return FakeRequest(lease=text(lease.token), part=np.array([part], np.int32), **more)


def music(request: FakeRequest) -> list[float]:
    """The first number of each chunk of a part that has ended."""
    assert request.sender.finished.wait(WAIT_S)
    tensors = [response.arrays() for response in request.sender.sent]
    return [each["music"][0][0] for each in tensors if "music" in each]


def following(request: FakeRequest) -> int | None:
    """The number of the next part; None after the last one."""
    assert request.sender.finished.wait(WAIT_S)
    ends = [
        response.arrays()[NEXT_PART.name] for response in request.sender.sent if NEXT_PART.name in response.arrays()
    ]
    return ends[0][0] if ends else None


def chunks(count: int, fails: bool = False) -> Callable[..., Iterator[dict[str, Any]]]:
    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        assert PART.name not in inputs
        for number in range(count):
            yield {"music": np.full((2, 2), number)}
        if fails:
            raise ServerBusy("the engine stopped", 3)

    return play


# --- the model that streams ---


@pytest.mark.parametrize("count", [0, 1, PER_PART, PER_PART + 1, 3 * PER_PART + 2])
def test_all_of_a_stream_comes_in_parts_that_are_requests_of_their_own(adapter, lease, count):
    heard: list[float] = []
    part: int | None = 0
    while part is not None:
        request = asked(lease, part)
        adapter.stream([request], chunks(count))
        heard += music(request)
        part = following(request)
    assert heard == list(range(count))
    wait_until(lambda: adapter._places._running == 0)


def test_no_part_is_made_before_it_is_asked_for(adapter, lease):
    stream, request = Counting(), asked(lease, 0)
    adapter.stream([request], stream)
    assert len(music(request)) == PER_PART
    time.sleep(0.2)
    assert stream.made == PER_PART
    lease.end()
    assert stream.closed.wait(SOON_S)


def test_who_does_not_ask_for_parts_gets_the_stream_as_a_whole(adapter, lease):
    request = FakeRequest(lease=text(lease.token))
    adapter.stream([request], chunks(10 * PER_PART))
    assert music(request) == list(range(10 * PER_PART))


def test_parts_are_for_those_who_hold_a_lease(adapter):
    request = FakeRequest(part=np.array([0], np.int32))
    adapter.stream([request], chunks(1))
    assert isinstance(outcome(request), InvalidOption)


def test_a_part_that_nobody_made_is_refused_and_hurts_nobody(adapter, lease):
    with Lease() as other:
        first = asked(lease, 0)
        adapter.stream([first], chunks(2 * PER_PART))
        assert following(first) == 1
        for wrong in (asked(lease, 2), asked(other, 1)):
            adapter.stream([wrong], chunks(PER_PART))
            assert isinstance(outcome(wrong), RequestCancelled)
        second = asked(lease, 1)
        adapter.stream([second], chunks(0))
        assert music(second) == list(range(PER_PART, 2 * PER_PART))
        twice = asked(lease, 1)
        adapter.stream([twice], chunks(PER_PART))
        assert isinstance(outcome(twice), RequestCancelled)


@pytest.mark.parametrize("by_deadline", [False, True])
def test_a_stream_that_waits_for_its_next_part_ends_with_the_lease_and_at_the_deadline(adapter, lease, by_deadline):
    stream = Counting()
    request = asked(lease, 0, **({DEADLINE.name: np.array([0.3], np.float32)} if by_deadline else {}))
    adapter.stream([request], stream)
    assert following(request) == 1
    assert not stream.closed.is_set()
    if not by_deadline:
        lease.end()
    assert stream.closed.wait(SOON_S)
    wait_until(lambda: adapter._places._running == 0)
    late = asked(lease, 1)
    adapter.stream([late], stream)
    assert isinstance(outcome(late), RequestCancelled)


def test_what_fails_in_a_later_part_is_told_there(adapter, lease):
    first, second = asked(lease, 0), asked(lease, 1)
    adapter.stream([first], chunks(PER_PART + 1, fails=True))
    assert following(first) == 1
    adapter.stream([second], chunks(0))
    assert isinstance(outcome(second), ServerBusy)
    assert len(second.sender.sent) == 2


# --- a model that asks another one ---


class Generator:
    """`music_generator` with the real adapter, over a real connection, to be asked by another model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stream: Callable[..., Iterator[dict[str, Any]]]) -> None:
        self._stream = stream
        self._adapter = make(FakePb(), MUSIC_GENERATOR, part_bytes=PER_PART * CHUNK_BYTES)
        self.triton = FakeTriton(self._answer)
        monkeypatch.setenv(OWN_URL, self.triton.url)
        self.caller = make(FakePb())

    def close(self) -> None:
        self.caller.close()
        self._adapter.close()
        self.triton.stop()

    def _answer(self, name: str, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray] | str]:
        request = FakeRequest(**inputs)
        self._adapter.stream([request], self._stream)
        assert request.sender.finished.wait(WAIT_S)
        for response in request.sender.sent:
            if response.has_error():
                yield response.error().message()
            else:
                yield {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


@contextlib.contextmanager
def generating(monkeypatch: pytest.MonkeyPatch, stream: Callable[..., Iterator[dict[str, Any]]]) -> Iterator[Generator]:
    made = Generator(monkeypatch, stream)
    try:
        yield made
    finally:
        made.close()


def test_a_model_asks_for_one_part_after_the_other_and_sees_one_stream(monkeypatch):
    with generating(monkeypatch, chunks(3 * PER_PART + 1)) as generator:
        wish = {"prompt": text("calm"), "music_spec": text("{}")}
        heard = list(generator.caller.call_stream("music_generator", wish, context=UNLIMITED))
        assert [each["music"][0, 0] for each in heard] == list(range(3 * PER_PART + 1))
        assert len(generator.triton.requests) == 4
        assert len({lease_of(request) for request in generator.triton.requests}) == 1


def test_a_model_that_gives_up_asks_for_no_further_part(monkeypatch):
    stream = Counting()
    with generating(monkeypatch, stream) as generator:
        answers = generator.caller.call_stream("music_generator", {"prompt": text("calm")}, context=UNLIMITED)
        next(answers)
        answers.close()
        assert stream.closed.wait(WAIT_S)
        assert len(generator.triton.requests) <= 3  # a few responses wait between two threads


def test_a_model_is_told_what_failed_in_a_later_part(monkeypatch):
    with generating(monkeypatch, chunks(PER_PART + 1, fails=True)) as generator:
        answers = generator.caller.call_stream("music_generator", {"prompt": text("calm")}, context=UNLIMITED)
        with pytest.raises(ServerBusy, match="the engine stopped"):
            list(answers)


# --- the guard ---


@pytest.fixture
def stub(upstream) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    guard = Guard(f"127.0.0.1:{free_ports().grpc}", GuardSettings(), lambda event, **fields: None)
    guard.start()
    guard.open(upstream.url)
    with grpc.insecure_channel(guard.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
    guard.stop()


def wish(word: str, *, raw: bool, **more: Any) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="parted", id="mine", **more)
    for name in ("more", "word"):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        if raw:
            request.raw_input_contents.append(struct.pack("<I", len(word)) + word.encode())
        else:
            tensor.contents.bytes_contents.append(word.encode())
    return request


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_clients_see_one_stream(stub, upstream, raw, count):
    request = wish(str(count), raw=raw)
    heard = [response.infer_response for response in stub.ModelStreamInfer(iter([request]))]
    assert [response.id for response in heard] == [str(number) for number in range(count)]
    assert [part_of(each) for each in upstream.seen] == list(range((count + 1) // 2))
    assert len({lease_of(each) for each in upstream.seen}) == 1
    assert {(each.id, word_of(each)) for each in upstream.seen} == {("mine", str(count).encode())}
    # What may be left out, which may be a recording of 100 MB, is not sent again.
    assert [[tensor.name for tensor in each.inputs] for each in upstream.seen[1:]] == [["word", "lease", "part"]] * (
        len(upstream.seen) - 1
    )


def test_a_client_that_asks_for_some_outputs_gets_all_parts(stub, upstream):
    request = wish("5", raw=True)
    request.outputs.add(name="y")
    assert len(list(stub.ModelStreamInfer(iter([request])))) == 5
    assert [[output.name for output in each.outputs] for each in upstream.seen] == [["y", NEXT_PART.name]] * 3


@pytest.mark.parametrize("name", [LEASE, PART.name])
def test_a_client_can_bring_neither_a_lease_nor_a_part(stub, name):
    request = wish("5", raw=False)
    request.inputs.add(name=name, datatype="INT32", shape=[1]).contents.int_contents.append(1)
    (response,) = stub.ModelStreamInfer(iter([request]))
    assert f"no input '{name}'" in response.error_message


def test_a_client_cannot_ask_for_the_output_that_ends_a_part(stub):
    request = wish("5", raw=True)
    request.outputs.add(name=NEXT_PART.name)
    (response,) = stub.ModelStreamInfer(iter([request]))
    assert f"no output '{NEXT_PART.name}'" in response.error_message
