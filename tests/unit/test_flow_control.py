"""A stream stays at most a window ahead of its reader, and ends when it should while it waits for him:

pytest tests/unit/test_flow_control.py
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import AttuneError, InvalidOption, RequestCancelled, RequestTimeout
from attune_client.protocol.models import DEADLINE, MODELS, MUSIC_GENERATOR, MUSIC_THERAPY, SPEECH_TO_TEXT
from attune_client.protocol.models import LEASE as LEASE_INPUT
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.serving.adapter import LEASE, Adapter, _in_background
from attune_ensemble.serving.flow import AHEAD_BYTES, Ahead, Handover
from attune_ensemble.serving.lease import Lease, LeaseReader
from attune_ensemble.serving.own_server import OWN_URL
from tests.fake_stub import SOON_S, WAIT_S, FakePb, FakeRequest, make, outcome, text, wait_until
from tests.fake_triton import FakeTriton

CHUNK = np.zeros((8, 2), np.float32)
WINDOW = 4
"""How many chunks the streams of these tests may be ahead."""

QUIET_S = 0.4
"""Long enough for a stream that does not wait to make hundreds of chunks."""


def open_leases() -> int:
    """How many files of leases this process has open."""
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "attune-lease" in str(file.readlink())
    return count


# --- what the holder of a lease says ---


def test_a_reader_sees_how_many_responses_the_holder_has_taken():
    with Lease() as lease:
        reader = LeaseReader(lease.token)
        assert reader.taken() is None  # it has not said anything
        for count in (0, 1, 2**40):
            lease.taken(count)
            assert reader.taken() == count
        reader.close()


def test_a_reader_sees_the_end_though_it_has_the_file_open():
    lease = Lease()
    reader = LeaseReader(lease.token)
    lease.taken(3)
    assert reader.taken() == 3
    assert reader.is_held()
    lease.end()
    assert not reader.is_held()
    with Lease() as other:  # by the same number
        other.taken(9)
        assert other.token.split("-")[:2] == lease.token.split("-")[:2]
        assert not reader.is_held()
        assert LeaseReader(lease.token).taken() is None
    reader.close()


def test_a_reader_sees_that_the_holder_was_killed():
    code = (
        "from attune_ensemble.serving.lease import Lease; l = Lease(); l.taken(5); print(l.token, flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    reader = LeaseReader(holder.stdout.readline().strip())
    assert reader.taken() == 5
    assert reader.is_held()
    holder.kill()
    holder.wait()
    assert not reader.is_held()
    reader.close()


def test_a_reader_keeps_one_file_open_and_closes_it():
    with Lease() as lease:
        lease.taken(1)
        before = open_leases()
        reader = LeaseReader(lease.token)
        reader.is_held()
        assert open_leases() == before  # who only asks that opens nothing
        for _ in range(10):
            reader.taken()
        assert open_leases() == before + 1
        reader.close()
        reader.close()
        assert open_leases() == before


def test_saying_something_after_the_end_touches_no_other_file(tmp_path):
    lease = Lease()
    number = int(lease.token.split("-")[1])
    lease.end()
    with (tmp_path / "other").open("w+b") as other:
        assert other.fileno() == number  # which is free again
        lease.taken(7)
        lease.end()
        assert other.read() == b""


def test_a_lease_may_end_while_another_thread_says_what_was_taken():
    for _ in range(50):
        lease = Lease()
        told = threading.Thread(target=lambda lease=lease: [lease.taken(count) for count in range(200)])
        told.start()
        lease.end()
        told.join()


def test_a_reader_of_no_token_of_ours_is_none():
    with pytest.raises(InvalidOption):
        LeaseReader("../../etc/passwd")
    assert LeaseReader(f"{os.getpid()}-0-{'a' * 32}").taken() is None


# --- how far a stream is ahead ---


def test_the_window_holds_half_a_minute_of_stereo_music():
    assert AHEAD_BYTES >= 30 * 32_000 * 2 * 4


def test_a_stream_is_far_enough_ahead_when_a_window_of_bytes_was_not_taken():
    taken = 0
    ahead = Ahead(100, lambda: taken)
    for size in (60, 30, 10):
        assert not ahead.is_far_enough()
        ahead.sent(size)
    assert ahead.is_far_enough()
    taken = 1
    assert not ahead.is_far_enough()
    ahead.sent(500)  # one response may be larger than the window
    taken = 3
    assert ahead.is_far_enough()
    taken = 4
    assert not ahead.is_far_enough()


def test_a_reader_that_never_says_anything_is_not_waited_for():
    ahead = Ahead(1, lambda: None)
    for _ in range(10):
        ahead.sent(100)
        assert not ahead.is_far_enough()


def test_the_reader_is_asked_once_in_a_window_and_not_for_every_response():
    asked: list[int] = []
    sent = 0

    def taken() -> int:
        asked.append(sent)
        return sent

    ahead = Ahead(32, taken)
    for _ in range(320):
        ahead.sent(1)
        sent += 1
        assert not ahead.is_far_enough()
    assert len(asked) == 10


# --- a stream and its reader ---


class Endless:
    """A stream that counts its chunks, and says when it was closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = threading.Event()

    def __call__(self, inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        try:
            while True:
                self.made += 1
                yield {"music": CHUNK}
        finally:
            self.closed.set()

    def comes_to_rest(self) -> int:
        """How many chunks were made, once there are no more."""
        before = -1
        while before != self.made:
            before = self.made
            time.sleep(QUIET_S)
        return before


@contextlib.contextmanager
def streaming(stream: Callable[..., Iterator[dict[str, Any]]], **inputs: np.ndarray) -> Iterator[FakeRequest]:
    """A request to a model that may be `WINDOW` chunks ahead."""
    adapter = make(FakePb(), MUSIC_GENERATOR, ahead_bytes=WINDOW * CHUNK.nbytes)
    request = FakeRequest(**inputs)
    adapter.stream([request], stream)
    try:
        yield request
    finally:
        request.sender.cancelled = True
        assert request.sender.finished.wait(WAIT_S)
        adapter.close()


def test_a_stream_stops_a_window_ahead_of_its_reader_and_goes_on_with_him():
    endless, lease = Endless(), Lease()
    lease.taken(0)
    with streaming(endless, lease=text(lease.token)) as request:
        assert endless.comes_to_rest() == WINDOW
        lease.taken(1)
        assert endless.comes_to_rest() == WINDOW + 1
        lease.taken(100)
        assert endless.comes_to_rest() == WINDOW + 100
        assert len(request.sender.sent) == WINDOW + 100
    lease.end()


def test_a_stream_to_a_reader_that_keeps_up_never_waits(monkeypatch):
    found: list[bool] = []
    is_far_enough = Ahead.is_far_enough
    monkeypatch.setattr(Ahead, "is_far_enough", lambda ahead: found.append(is_far_enough(ahead)) or found[-1])
    lease = Lease()
    lease.taken(0)

    def chunks(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        for count in range(50 * WINDOW):
            lease.taken(count)
            yield {"music": CHUNK}

    with lease, streaming(chunks, lease=text(lease.token)) as request:
        assert request.sender.finished.wait(WAIT_S)
        assert len(request.sender.sent) == 50 * WINDOW
    assert found == [False] * 50 * WINDOW


@pytest.mark.parametrize("has_lease", [False, True])
def test_a_stream_for_somebody_who_does_not_say_what_he_takes_is_not_held_back(has_lease):
    with Lease() as lease:
        endless = Endless()
        with streaming(endless, **({LEASE: text(lease.token)} if has_lease else {})):
            wait_until(lambda: endless.made > 10 * WINDOW)


def test_empty_items_take_no_room():
    def mute(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        for _ in range(10 * WINDOW):
            yield {}
        yield {"music": CHUNK}

    with Lease() as lease:
        lease.taken(0)
        with streaming(mute, lease=text(lease.token)) as request:
            assert outcome(request).arrays() == {"music": CHUNK.tolist()}


def wait_ended(endless: Endless, request: FakeRequest, end: Callable[[], None]) -> Any:
    """What a stream that waits for its reader ends with, and that it does so soon."""
    wait_until(lambda: endless.made == WINDOW)
    assert not request.sender.finished.wait(QUIET_S)
    end()
    assert request.sender.finished.wait(SOON_S)
    assert endless.closed.wait(SOON_S)
    assert endless.made == WINDOW
    return outcome(request)


def test_a_stream_that_waits_for_its_reader_ends_when_it_is_cancelled():
    endless = Endless()
    with Lease() as lease:
        lease.taken(0)
        with streaming(endless, lease=text(lease.token)) as request:

            def cancel() -> None:
                request.sender.cancelled = True

            assert isinstance(wait_ended(endless, request, cancel), RequestCancelled)


def test_a_stream_that_waits_for_its_reader_ends_with_the_lease():
    endless, lease = Endless(), Lease()
    lease.taken(0)
    with streaming(endless, lease=text(lease.token)) as request:
        assert isinstance(wait_ended(endless, request, lease.end), RequestCancelled)


def test_a_stream_that_waits_for_its_reader_ends_when_he_is_killed():
    code = (
        "from attune_ensemble.serving.lease import Lease; l = Lease(); l.taken(0); print(l.token, flush=True); input()"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    endless = Endless()
    with streaming(endless, lease=text(reader.stdout.readline().strip())) as request:

        def kill() -> None:
            reader.kill()
            reader.wait()

        assert isinstance(wait_ended(endless, request, kill), RequestCancelled)


def test_a_stream_that_waits_for_its_reader_ends_at_its_deadline():
    endless = Endless()
    deadline_s = 2 * QUIET_S
    with Lease() as lease:
        lease.taken(0)
        deadline = np.array([deadline_s], np.float32)
        with streaming(endless, lease=text(lease.token), deadline_s=deadline) as request:
            ended = wait_ended(endless, request, lambda: time.sleep(deadline_s - QUIET_S))
            assert isinstance(ended, RequestTimeout)


def test_a_stream_that_ended_keeps_no_file_of_the_lease_open():
    def chunks(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        for _ in range(3 * WINDOW):
            yield {"music": CHUNK}

    with Lease() as lease:
        lease.taken(10 * WINDOW)
        before = open_leases()
        with streaming(chunks, lease=text(lease.token)) as request:
            outcome(request)
        assert open_leases() == before


# --- from the listener back to the engine ---


class Chain:
    """`music_therapy` in front of `music_generator`, both with the real adapter, over a real connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endless: list[Endless] = []
        self._generator = make(FakePb(), MUSIC_GENERATOR, ahead_bytes=WINDOW * CHUNK.nbytes)
        self._triton = FakeTriton(self._generate, workers=64)
        monkeypatch.setenv(OWN_URL, self._triton.url)
        self._therapy = make(FakePb(), MUSIC_THERAPY, ahead_bytes=WINDOW * CHUNK.nbytes, max_concurrent=64)

    def listen(self, lease: Lease) -> FakeRequest:
        request = FakeRequest(text=text("calm"), lease=text(lease.token))
        self._therapy.stream([request], self._play)
        return request

    def close(self) -> None:
        self._therapy.close()
        self._generator.close()
        self._triton.stop()

    def _play(self, inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        yield from self._therapy.call_stream("music_generator", {"prompt": inputs["text"]}, context=context)

    def _generate(self, name: str, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray] | str]:
        request, endless = FakeRequest(**inputs), Endless()
        self.endless.append(endless)
        self._generator.stream([request], endless)
        handed_on = 0
        while not (request.sender.finished.is_set() and handed_on == len(request.sender.sent)):
            if handed_on == len(request.sender.sent):
                time.sleep(0.005)
                continue
            response = request.sender.sent[handed_on]
            handed_on += 1
            if response.has_error():
                yield response.error().message()
            else:
                yield {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


@pytest.fixture
def chain(monkeypatch) -> Iterator[Chain]:
    made = Chain(monkeypatch)
    yield made
    made.close()


def test_sixteen_slow_listeners_hold_the_engine_back_and_nothing_piles_up(chain):
    leases = [Lease() for _ in range(16)]
    for lease in leases:
        lease.taken(0)
    requests = [chain.listen(lease) for lease in leases]
    # A window behind each of the two models; one that was handed on counts as taken once the next is asked for.
    most = 2 * WINDOW - 1
    for count in (0, 1, 2, 30):
        for lease in leases:
            lease.taken(count)
        wait_until(lambda count=count: all(len(request.sender.sent) == WINDOW + count for request in requests))
        time.sleep(QUIET_S)
        assert [endless.made for endless in chain.endless] == [most + count] * 16
    for lease in leases:
        lease.end()
    for request in requests:
        assert request.sender.finished.wait(SOON_S)
    wait_until(lambda: all(endless.closed.is_set() for endless in chain.endless))


# --- from one thread to another ---


def test_only_a_few_responses_wait_between_two_threads():
    made = 0

    def produce() -> Iterator[dict[str, np.ndarray]]:
        nonlocal made
        while made < 1000:
            made += 1
            yield {"music": CHUNK}

    answers = _in_background(produce, "music_generator", UNLIMITED, None)
    next(answers)
    time.sleep(QUIET_S)
    assert made <= 8
    for _ in range(100):
        next(answers)
    time.sleep(QUIET_S)
    assert 101 <= made <= 108
    answers.close()
    wait_until(lambda: made == 1000)  # it is drained, for Triton keeps what is not read
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "call-music_generator"])


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_thread_that_waits_for_room_ends_when_nobody_takes_any_more(is_cancelled):
    told: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def listening(tell: Callable[[], None]) -> Iterator[None]:
        told.append(tell)
        yield

    cancelled = threading.Event()
    context = CallContext(is_cancelled=cancelled.is_set, on_cancel=listening)
    answers = _in_background(lambda: iter([{"music": CHUNK}] * 100), "music_generator", context, None)
    next(answers)
    if is_cancelled:
        cancelled.set()
        told[0]()
        with pytest.raises(RequestCancelled):
            list(answers)
    del answers  # forgotten rather than closed
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "call-music_generator"])


def test_what_is_handed_over_comes_in_its_order_and_after_the_end_nobody_is_held_up():
    handover = Handover()
    for item in range(3):
        handover.put(item)
    handover.put_at_once("end")
    assert [handover.get(WAIT_S) for _ in range(4)] == [0, 1, 2, "end"]
    handover.close()
    for item in range(100):
        handover.put(item)


# --- whoever blocks keeps nobody waiting ---


@pytest.mark.parametrize("by_deadline", [False, True])
def test_a_request_whose_work_blocks_ends_all_the_same(by_deadline):
    """A search, a graph or a decoder that does not look at its context."""
    go_on, begun = threading.Event(), threading.Event()

    def transcribe(inputs: dict[str, np.ndarray], *, context: CallContext) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(WAIT_S)
        return {"start_s": [0.0]}

    adapter = make(FakePb(), SPEECH_TO_TEXT, max_concurrent=1, max_waiting=0)
    deadline = {DEADLINE.name: np.array([0.2], np.float32)} if by_deadline else {}
    request, next_one = FakeRequest(audio=text("a"), **deadline), FakeRequest(audio=text("b"))
    adapter.answer_concurrently([request], transcribe)
    assert begun.wait(WAIT_S)
    request.sender.cancelled = not by_deadline
    assert request.sender.finished.wait(SOON_S + 0.2)
    assert isinstance(outcome(request), RequestTimeout if by_deadline else RequestCancelled)
    go_on.set()  # what comes of it is for nobody
    wait_until(lambda: adapter._places._running == 0)
    assert len(request.sender.sent) == 1
    adapter.answer_concurrently([next_one], transcribe)
    assert outcome(next_one).arrays() == {"start_s": [0.0]}
    adapter.close()


def test_a_stream_whose_engine_blocks_ends_all_the_same_and_sends_nothing_more():
    go_on = threading.Event()

    def play(inputs: dict[str, np.ndarray], *, context: CallContext) -> Iterator[dict[str, Any]]:
        yield {"music": CHUNK}
        assert go_on.wait(WAIT_S)
        yield {"music": CHUNK}

    adapter = make(FakePb(), MUSIC_GENERATOR)
    request = FakeRequest()
    adapter.stream([request], play)
    wait_until(lambda: len(request.sender.sent) == 1)
    request.sender.cancelled = True
    assert request.sender.finished.wait(SOON_S)
    assert isinstance(outcome(request), RequestCancelled)
    go_on.set()
    wait_until(lambda: adapter._places._running == 0)
    assert len(request.sender.sent) == 2
    adapter.close()


# --- which models take one ---


def test_every_model_that_does_not_only_batch_takes_a_lease_and_a_deadline():
    for model in MODELS.values():
        assert (LEASE_INPUT in model.inputs) == (DEADLINE in model.inputs) == (not model.max_batch_size), model.name


def test_every_called_model_is_given_a_lease_that_lasts_as_long_as_the_call():
    held: list[bool] = []
    readers: list[LeaseReader] = []

    def called(name: str, inputs: dict[str, np.ndarray]) -> Any:
        readers.append(LeaseReader(inputs[LEASE][0].decode()))
        held.append(readers[-1].is_held())
        return FakePb.InferenceResponse([])

    adapter: Adapter = make(FakePb(called))
    for name in ("speech_to_text", "music_prompt", "speech_emotion"):
        with contextlib.suppress(AttuneError):
            adapter.call(name, {}, context=UNLIMITED)
    assert held == [True] * 3
    assert not any(reader.is_held() for reader in readers)
    adapter.close()
