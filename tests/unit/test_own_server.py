"""Streams asked over the server's own port, of a server that answers, blocks, fails and vanishes:

pytest tests/unit/test_own_server.py
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attune_client.protocol.errors import (
    AttuneError,
    InvalidOption,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    from_wire,
)
from attune_client.protocol.models import MUSIC_GENERATOR
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.call import CallContext
from attune_ensemble.serving.lease import is_held
from attune_ensemble.serving.own_server import OWN_URL, OwnServer, Responses, own_url
from attune_ensemble.serving.services import create_service
from tests.fake_stub import WAIT_S, FakePb, FakeRequest, make, outcome, text, wait_until
from tests.fake_triton import Answer, FakeTriton, Tensors, inputs_of

FORGOTTEN_S = 60.0
CHUNK = {"music": np.zeros((8, 2), np.float32)}


def answered(name: str, message: str) -> AttuneError:
    return from_wire(message)


@dataclass
class Asking:
    """The real caller in front of a server that is not."""

    triton: FakeTriton
    own_server: OwnServer
    log: list[str] = field(default_factory=list)

    def __call__(self, **inputs: np.ndarray) -> Responses:
        return self.own_server.ask(MUSIC_GENERATOR, inputs, "narration/music_generator")


@pytest.fixture
def asking() -> Iterator[Callable[[Answer], Asking]]:
    begun: list[Asking] = []

    def begin(answer: Answer) -> Asking:
        triton, log = FakeTriton(answer), []
        begun.append(Asking(triton, OwnServer(triton.url, answered, log.append), log))
        return begun[-1]

    yield begin
    for asked in begun:
        asked.own_server.close()
        asked.triton.stop()


# --- what is said ---


def test_tensors_of_every_type_arrive_there_and_back(asking):
    responses = [
        {"engine": bytes_tensor("composer"), "sample_rate": np.array([32_000], np.int32), "seed": np.array([-1])},
        {"music": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)},
        {"music": np.zeros((0, 2), np.float32)},
    ]
    ask = asking(lambda name, inputs: iter(responses))
    given = {"prompt": bytes_tensor("größer"), "duration_s": np.array([2], np.float32), "seed": np.array([2**62])}
    came = list(ask(**given))
    assert [{name: array.tolist() for name, array in tensors.items()} for tensors in came] == [
        {name: array.tolist() for name, array in tensors.items()} for tensors in responses
    ]
    assert [tensors[name].dtype for tensors in came for name in tensors] == [
        array.dtype for tensors in responses for array in tensors.values()
    ]
    (request,) = ask.triton.requests
    assert (request.model_name, request.id) == ("music_generator", "narration/music_generator")
    assert {name: array.tolist() for name, array in inputs_of(request).items()} == {
        name: array.tolist() for name, array in given.items()
    }


def test_an_empty_list_of_words_can_be_sent(asking):
    ask = asking(lambda name, inputs: iter([CHUNK]))
    list(ask(prompt=np.array([], dtype=np.object_)))
    assert list(ask.triton.requests[0].raw_input_contents) == [b""]


@pytest.mark.parametrize("chunks", [0, 2])
def test_an_error_ends_it_wherever_it_comes(asking, chunks):
    message = "Failed to process the request(s), message: invalid_option: no such engine"
    came = []
    with pytest.raises(InvalidOption, match=r"^no such engine$"):
        came.extend(asking(lambda name, inputs: iter([*[CHUNK] * chunks, message]))())
    came = []
    responses = iter(asking(lambda name, inputs: iter([*[CHUNK] * chunks, message]))())
    for _ in range(chunks):
        came.append(next(responses))
    with pytest.raises(InvalidOption):
        next(responses)
    assert len(came) == chunks


def test_everybody_shares_one_connection(asking):
    meeting = threading.Barrier(8, timeout=WAIT_S)

    def answer(name: str, inputs: Tensors) -> Iterator[Tensors]:
        meeting.wait()
        yield CHUNK

    ask = asking(answer)
    with ThreadPoolExecutor(8) as pool:
        assert [len(came) for came in pool.map(lambda _: list(ask()), range(8))] == [1] * 8
    assert len(ask.triton.peers) == 1


def test_a_proxy_of_the_environment_is_not_asked(asking, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert len(list(asking(lambda name, inputs: iter([CHUNK]))())) == 1


# --- where it is ---


def test_a_missing_address_is_named_with_what_it_should_be():
    for environment in ({}, {OWN_URL: ""}):
        with pytest.raises(ServerUnavailable, match=r"ATTUNE_OWN_URL is not set: .* such as 127\.0\.0\.1:8001"):
            own_url(environment)
    assert own_url({OWN_URL: "127.0.0.1:9"}) == "127.0.0.1:9"


def test_a_model_that_streams_on_is_not_loaded_without_the_address(monkeypatch):
    monkeypatch.delenv(OWN_URL, raising=False)
    monkeypatch.setattr("attune_ensemble.serving.services._rules", lambda host: None)
    with pytest.raises(ServerUnavailable, match="ATTUNE_OWN_URL is not set"):
        create_service("music_therapy", make(FakePb()))
    monkeypatch.setenv(OWN_URL, "127.0.0.1:9")
    create_service("music_therapy", make(FakePb()))


def test_whoever_does_not_stream_on_loads_nothing_for_it():
    code = "import sys, attune_ensemble.serving.adapter; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_server_that_is_not_there_is_told_at_once_and_the_log_says_where(asking):
    ask = asking(lambda name, inputs: iter([CHUNK]))
    ask.triton.stop()
    started_s = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"^music_generator cannot be reached; see the server's log$"):
        list(ask())
    assert time.monotonic() - started_s < WAIT_S
    assert f"music_generator was asked at {ask.triton.url} (ATTUNE_OWN_URL): StatusCode.UNAVAILABLE" in ask.log[0]


def test_a_server_that_vanishes_ends_what_it_had_begun(asking):
    hold = threading.Event()

    def answer(name: str, inputs: Tensors) -> Iterator[Tensors]:
        yield CHUNK
        hold.wait(WAIT_S)

    ask = asking(answer)
    responses = iter(ask())
    next(responses)
    threading.Timer(0.1, ask.triton._server.stop, [None]).start()
    with pytest.raises(ServerUnavailable):
        next(responses)
    hold.set()


def test_a_server_that_fails_is_told_without_its_insides(asking):
    def answer(name: str, inputs: Tensors) -> Iterator[Tensors]:
        raise ValueError("/models/secret")
        yield CHUNK

    ask = asking(answer)
    with pytest.raises(ServerError, match=r"^music_generator failed; see the server's log$"):
        list(ask())
    assert "/models/secret" in ask.log[0]


# --- whoever waits ---


class Unending:
    """Sends chunk after chunk until it is told to stop, if it listens; counts them."""

    def __init__(self) -> None:
        self.go_on = True
        self.made = 0

    def __call__(self, name: str, inputs: Tensors) -> Iterator[Tensors]:
        while self.go_on:
            self.made += 1
            yield CHUNK
            time.sleep(0.005)


def read_in_background(responses: Responses) -> threading.Thread:
    def read() -> None:
        with pytest.raises(AttuneError):
            list(responses)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_what_is_abandoned_is_cancelled_only_if_it_does_not_end(asking, monkeypatch):
    monkeypatch.setattr("attune_ensemble.serving.own_server._LINGER_S", 0.3)
    deaf = Unending()
    ask = asking(deaf)
    responses = ask()
    reader = read_in_background(responses)
    wait_until(lambda: deaf.made > 2)
    responses.abandon()
    assert not ask.triton.ended
    wait_until(lambda: ask.triton.ended == [True])
    reader.join(WAIT_S)
    assert not reader.is_alive()


def test_what_ends_by_itself_is_not_cancelled_and_leaves_no_timer(asking):
    listening = Unending()
    ask = asking(listening)
    responses = ask()
    reader = threading.Thread(target=lambda: list(responses))
    reader.start()
    wait_until(lambda: listening.made > 2)
    responses.abandon()
    listening.go_on = False
    reader.join(WAIT_S)
    assert ask.triton.ended == [False]
    wait_until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


def test_closing_the_connection_ends_what_goes_on(asking):
    deaf = Unending()
    ask = asking(deaf)
    reader = read_in_background(ask())
    wait_until(lambda: deaf.made > 2)
    ask.own_server.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    wait_until(lambda: ask.triton.ended == [True])


# --- all of it at once, through the adapter ---


class Generator:
    """The model that is asked: it announces, and then plays to the end or until its lease ends, refuses, or is dead."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.leases: list[str] = []

    def __call__(self, name: str, inputs: Tensors) -> Iterator[Tensors | str]:
        lease = inputs["lease"][0].decode()
        self.leases.append(lease)
        yield {"engine": bytes_tensor("toy")}
        match inputs["prompt"][0]:
            case b"dead":
                self.end.wait(10 * WAIT_S)
            case b"busy":
                yield ServerBusy("every place is taken", 3).to_wire()
            case b"long":
                while is_held(lease):
                    yield CHUNK
                    time.sleep(0.002)
                yield "request_cancelled: nobody waits"
            case b"short":
                yield from [CHUNK] * 20


def test_a_storm_of_calls_in_one_process_forgets_nobody(monkeypatch):
    """Sixteen listeners, for each of whom two calls are made; some give up, and some are answered by nobody."""
    monkeypatch.setattr("attune_ensemble.serving.own_server._LINGER_S", 0.5)
    generator = Generator()
    triton = FakeTriton(generator, workers=128)
    monkeypatch.setenv(OWN_URL, triton.url)
    adapter = make(FakePb(), MUSIC_GENERATOR)
    ends = {"short": {"whole"}, "busy": {"ServerBusy"}, "long": {"RequestCancelled"}, "dead": {"RequestTimeout"}}

    def play(inputs: Tensors, *, context: CallContext) -> Iterator[dict[str, Any]]:
        wish = {"prompt": inputs["prompt"]}
        list(adapter.call_stream("music_generator", {"prompt": text("short")}, context=context))
        yield from adapter.call_stream("music_generator", wish, context=context)

    def listen(seed: int) -> set[str]:
        chance, wrong = random.Random(seed), set()
        for _ in range(4):
            wish = chance.choice([*ends])
            deadline = {"deadline_s": np.array([chance.uniform(0.3, 0.6)], np.float32)} if wish == "dead" else {}
            request = FakeRequest(prompt=text(wish), **deadline)
            adapter.stream([request], play)
            if wish == "long":
                time.sleep(chance.uniform(0, 0.3))
                request.sender.cancelled = True
            assert request.sender.finished.wait(FORGOTTEN_S)
            ended = outcome(request)
            kind = type(ended).__name__ if isinstance(ended, AttuneError) else "whole"
            if kind not in ends[wish]:
                wrong.add(f"{wish} ended as {kind}: {ended}")
        return wrong

    try:
        with ThreadPoolExecutor(16) as pool:
            assert set().union(*pool.map(listen, range(16))) == set()
        assert not any(map(is_held, generator.leases))
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "call-music_generator"])
    finally:
        generator.end.set()
        adapter.close()
        triton.stop()


def test_nothing_served_calls_a_streaming_model_by_the_stub():
    """It deadlocks in the server's release."""
    root = Path(__file__).parents[2]
    for file in [*root.glob("ensemble/**/*.py"), *root.glob("model_repository/*/1/model.py")]:
        if file.name != "own_server.py":
            assert "decoupled=True" not in file.read_text(), file
