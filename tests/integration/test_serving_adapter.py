"""The adapters on the real server: overlap, errors, cancellation, and what is left when the server stops.

    pytest tests/integration/test_serving_adapter.py

Toy models stand behind the real configurations of `music_prompt`, `music_generator` and `music_therapy`.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from attune_client.protocol.errors import (
    InvalidOption,
    RequestCancelled,
    RequestTimeout,
    ServerBusy,
    ServerError,
    from_wire,
)
from attune_client.protocol.profiles import EMBEDDED
from attune_ensemble.serving.launcher.server import Server
from attune_ensemble.serving.lease import Lease
from attune_export.repository_config import model_config, render

pytestmark = pytest.mark.server

WAIT_S = 30.0
"""The longest wait for what comes at once, or after `CALL_TIMEOUT_S`: a machine may be ten times slower than ours."""

SLOW_S = 0.5
CHUNK_S, CHUNKS = 0.05, 200
CHUNK_BYTES, AHEAD = 4 * 2 * 4, 10
SOON_S = 1.0
CALL_TIMEOUT_S = 3.0
AT_WORK, WAITING = 4, 1

HEAD = """
import threading
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils
from attune_client.protocol import models
from attune_client.protocol.errors import InvalidOption
from attune_ensemble.serving.adapter import Adapter
"""

PROMPT = f"""
class TritonPythonModel:
    def initialize(self, args):
        self.triton = Adapter(models.MUSIC_PROMPT, args, pb_utils)
        self.meeting = threading.Barrier({AT_WORK}, timeout={WAIT_S})

    def execute(self, requests):
        self.triton.answer_concurrently(requests, self.describe)

    def describe(self, inputs, context):
        text = inputs["text"][0].decode()
        if text == "bad":
            raise InvalidOption("no such emotion: bad")
        if text == "bug":
            return {{}}["bug"]
        if text.startswith("meet"):
            self.meeting.wait()
        if text.startswith("held"):
            while not (self.triton.folder / "go on").exists():
                time.sleep(0.02)
        time.sleep({SLOW_S} if text != "long" else {2 * SOON_S})
        return {{"prompt": text, "similarity": 0.5}}
"""

# Writes a dot for every chunk that it makes, so that a test sees when it stops; "mute" makes empty ones, of which
# nobody is told.
GENERATOR = f"""
class TritonPythonModel:
    def initialize(self, args):
        self.triton = Adapter(models.MUSIC_GENERATOR, args, pb_utils)

    def execute(self, requests):
        self.triton.stream(requests, self.play)

    def play(self, inputs, context):
        for index in range({CHUNKS}):
            if (inputs["prompt"][0], index) in [(b"unplayable", 0), (b"breaks off", 1)]:
                raise InvalidOption(f"{{inputs['prompt'][0].decode()}} at chunk {{index}}")
            time.sleep({CHUNK_S})
            with (self.triton.folder / "chunks").open("a") as file:
                file.write(".")
            mute = inputs["prompt"][0] == b"mute"
            yield {{}} if mute else {{"music": np.full((4, 2), np.nan if inputs["prompt"][0] == b"nan" else index)}}
"""

THERAPY = f"""
class TritonPythonModel:
    def initialize(self, args):
        self.triton = Adapter(models.MUSIC_THERAPY, args, pb_utils)

    def execute(self, requests):
        self.triton.stream(requests, self.play)

    def play(self, inputs, context):
        text = inputs["audio"]
        yield self.triton.call("music_prompt", {{"text": text}}, context=context)
        music = {{"prompt": text, "music_spec": text}}
        yield from self.triton.call_stream("music_generator", music, context=context, timeout_s={CALL_TIMEOUT_S})
"""

TOYS = {"music_prompt": PROMPT, "music_generator": GENERATOR, "music_therapy": THERAPY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("adapters")
    for name, code in TOYS.items():
        folder = root / "repository" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(HEAD + code)
        config = model_config(name, EMBEDDED)
        if name == "music_prompt":
            config.parameters["max_concurrent"].string_value = str(AT_WORK)
            config.parameters["max_waiting"].string_value = str(WAITING)
        else:
            config.parameters["ahead_bytes"].string_value = str(AHEAD * CHUNK_BYTES)
        (folder.parent / "config.pbtxt").write_text(render(config))
        (folder / "chunks").touch()
    # Some tests kill a model under a stream, which the server then believes to be in flight for ever. Models named one
    # by one can be unloaded and loaded again.
    options = {"log_file": root / "server.log", "exit_timeout_s": 1, "models": tuple(TOYS)}
    with Server(root / "repository", **options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[grpc.InferenceServerClient]:
    client = grpc.InferenceServerClient(server.grpc_url)
    yield client
    client.stop_stream(cancel_requests=True)
    client.close()


def text(name: str, value: str) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1], "BYTES")
    return tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))


def describe(client: grpc.InferenceServerClient, words: str) -> str:
    result = client.infer("music_prompt", [text("text", words)], client_timeout=WAIT_S)
    return result.as_numpy("prompt")[0].decode()


def start_therapy(client: grpc.InferenceServerClient, words: str) -> Callable[[], Any]:
    return start_stream(client, "music_therapy", [text("audio", words)])


def start_stream(client: grpc.InferenceServerClient, model: str, inputs: list[grpc.InferInput]) -> Callable[[], Any]:
    """Start a stream; returns what waits for its next response, and raises the error that it ends with."""
    responses: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: responses.put((result, error)))
    client.async_stream_infer(model, inputs)

    def take() -> Any:
        result, error = responses.get(timeout=WAIT_S)
        if error is not None:
            raise error
        return result

    return take


def chunks_made(server: Server) -> int:
    return len((server.repository / "music_generator" / "1" / "chunks").read_text())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def kill_and_revive(server: Server, client: grpc.InferenceServerClient, model: str) -> Callable[[], None]:
    """Kill a model's process; the result loads the model again."""
    path = f"/{model}/1/model.py".encode()
    (process,) = (pid for pid in server.process_ids() if path in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(process, signal.SIGKILL)

    def revive() -> None:
        client.unload_model(model)
        wait_until(lambda: not client.is_model_ready(model))
        client.load_model(model)

    return revive


def has_stopped(server: Server) -> bool:
    """Whether the generator makes no chunk in the time of six."""
    made = chunks_made(server)
    time.sleep(6 * CHUNK_S)
    return chunks_made(server) == made


def test_requests_of_one_process_overlap(client):
    words = [f"meet {index}" for index in range(AT_WORK)]  # each goes on when all are at work
    with ThreadPoolExecutor(AT_WORK) as pool:
        assert list(pool.map(lambda text: describe(client, text), words)) == words


def test_a_failing_request_leaves_the_others_alone(client):
    def ask(words: str) -> str | InferenceServerException:
        try:
            return describe(client, words)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        good, bad, bug = pool.map(ask, ("good", "bad", "bug"))
    assert good == "good"
    assert bad.status() == "StatusCode.INVALID_ARGUMENT"
    assert isinstance(from_wire(bad.message()), InvalidOption)
    assert str(from_wire(bad.message())) == "no such emotion: bad"
    assert isinstance(from_wire(bug.message()), ServerError)
    assert str(from_wire(bug.message())) == "music_prompt failed; see the server's log"


def test_the_traceback_is_in_the_log(client, server):
    with pytest.raises(InferenceServerException):
        describe(client, "bug")
    wait_until(lambda: "KeyError: 'bug'" in server.log_file.read_text())


def test_an_error_of_a_called_model_keeps_its_class(client):
    take = start_therapy(client, "bad")
    with pytest.raises(InferenceServerException) as caught:
        take()
    assert isinstance(from_wire(caught.value.message()), InvalidOption)


@pytest.mark.parametrize(("words", "chunks"), [("unplayable", 0), ("breaks off", 1)])
def test_an_error_in_a_called_stream_ends_it_wherever_it_comes(client, words, chunks):
    take = start_therapy(client, words)
    for _ in range(1 + chunks):
        take()
    with pytest.raises(InferenceServerException) as caught:
        take()
    error = from_wire(caught.value.message())
    assert isinstance(error, InvalidOption)
    assert str(error) == f"{words} at chunk {chunks}"


@pytest.mark.parametrize(("words", "chunks"), [("unplayable", 0), ("breaks off", 1)])
def test_an_error_in_a_stream_reaches_the_client(client, words, chunks):
    take = start_stream(client, "music_generator", [text("prompt", words), text("music_spec", "")])
    for _ in range(chunks):
        take()
    with pytest.raises(InferenceServerException) as caught:
        take()
    assert isinstance(from_wire(caught.value.message()), InvalidOption)


def test_cancelling_stops_the_called_model_within_a_chunk_or_two(client, server):
    take = start_therapy(client, "calm")
    first, second = take(), take()
    assert first.as_numpy("prompt")[0] == b"calm"
    assert first.as_numpy("music") is None
    assert second.as_numpy("music").tolist() == [[0, 0]] * 4
    client.stop_stream(cancel_requests=True)
    made = chunks_made(server)
    wait_until(lambda: has_stopped(server))
    assert chunks_made(server) - made <= 4


def test_cancelling_is_noticed_although_nothing_comes(client, server):
    """The called model works, but sends nothing: its caller waits, and nobody hears of an empty chunk."""
    take = start_therapy(client, "mute")
    take()
    made = chunks_made(server)
    wait_until(lambda: chunks_made(server) > made)
    client.stop_stream(cancel_requests=True)
    time.sleep(SOON_S)
    assert has_stopped(server)


def test_a_deadline_ends_the_work_too(client, server):
    made = chunks_made(server)
    responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: responses.put(error or result), stream_timeout=2 * SLOW_S)
    client.async_stream_infer("music_therapy", [text("audio", "mute")])
    responses.get(timeout=WAIT_S)
    assert "Deadline" in str(responses.get(timeout=WAIT_S))
    time.sleep(SOON_S)
    assert chunks_made(server) > made
    assert has_stopped(server)


def seconds(value: float) -> grpc.InferInput:
    tensor = grpc.InferInput("deadline_s", [1], "FP32")
    return tensor.set_data_from_numpy(np.array([value], np.float32))


def timed_out(take: Callable[[], Any]) -> tuple[int, str]:
    """How many responses came before the error, and what it says."""
    responses: list[Any] = []
    with pytest.raises(InferenceServerException) as caught:
        responses.extend(iter(take, None))
    error = from_wire(caught.value.message())
    assert isinstance(error, RequestTimeout)
    return len(responses), str(error)


@pytest.mark.parametrize("words", ["calm", "mute"])
def test_a_request_that_comes_to_its_deadline_ends_in_the_middle_and_so_does_the_called_model(client, server, words):
    made = chunks_made(server)
    take = start_stream(client, "music_therapy", [text("audio", words), seconds(2 * SLOW_S)])
    responses, told = timed_out(take)
    assert responses > 1 if words == "calm" else responses == 1
    assert told in (f"the deadline passed before {model} was done" for model in ("music_generator", "music_therapy"))
    wait_until(lambda: has_stopped(server))
    assert 0 < chunks_made(server) - made < 2 * SLOW_S / CHUNK_S


@pytest.mark.parametrize("model", ["music_therapy", "music_generator"])
def test_a_request_without_time_begins_nothing(client, server, model):
    made = chunks_made(server)
    inputs = {"music_therapy": ["audio"], "music_generator": ["prompt", "music_spec"]}[model]
    take = start_stream(client, model, [*(text(name, "calm") for name in inputs), seconds(1e-6)])
    assert timed_out(take) == (0, f"the deadline passed before {model} was done")
    assert chunks_made(server) == made


def test_whoever_waits_beyond_his_deadline_gives_his_place_to_the_next(client, server):
    with ThreadPoolExecutor(AT_WORK) as pool:
        at_work = [pool.submit(describe, client, "long") for _ in range(AT_WORK)]
        time.sleep(SLOW_S / 2)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("music_prompt", [text("text", "late"), seconds(SLOW_S / 2)], client_timeout=WAIT_S)
        assert isinstance(from_wire(caught.value.message()), RequestTimeout)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert not any(answer.done() for answer in at_work)
        assert describe(client, "the next") == "the next"
        assert [answer.result() for answer in at_work] == ["long"] * AT_WORK


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 3_601.0])
def test_a_deadline_out_of_range_is_refused(client, value):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("music_prompt", [text("text", "calm"), seconds(value)], client_timeout=WAIT_S)
    assert isinstance(from_wire(caught.value.message()), InvalidOption)
    assert "deadline_s must lie above 0" in caught.value.message()


def test_the_log_names_a_request_by_the_id_that_its_client_gave_it(client, server):
    with pytest.raises(InferenceServerException):
        client.infer("music_prompt", [text("text", "calm"), seconds(1e-6)], request_id="narration-7")
    wait_until(lambda: "music_prompt: not done in time: request narration-7" in server.log_file.read_text())


def test_nothing_is_begun_for_a_client_that_went_while_its_answer_was_made(client, server):
    start_therapy(client, "long")
    made = chunks_made(server)
    time.sleep(SLOW_S)
    client.stop_stream(cancel_requests=True)
    time.sleep(2 * SOON_S)
    assert chunks_made(server) == made


def test_one_too_many_is_refused_at_once(client, server):
    go_on = server.repository / "music_prompt" / "1" / "go on"
    with ThreadPoolExecutor(AT_WORK + WAITING + 2) as pool:
        try:
            answers = [pool.submit(describe, client, f"held {index}") for index in range(AT_WORK + WAITING + 2)]
            wait_until(lambda: sum(answer.done() for answer in answers) == 2)  # the others are held
        finally:
            go_on.touch()
    go_on.unlink()
    refused = [error for answer in answers if (error := answer.exception()) is not None]
    assert len(refused) == 2
    for error in refused:
        assert isinstance(error, InferenceServerException)
        assert error.status() == "StatusCode.UNAVAILABLE"
        told = from_wire(error.message())
        assert isinstance(told, ServerBusy)
        assert told.retry_after_s


def test_whoever_goes_while_he_waits_gives_his_place_to_the_next(client, server):
    others = grpc.InferenceServerClient(server.grpc_url)
    with ThreadPoolExecutor(AT_WORK + WAITING) as pool:
        at_work = [pool.submit(describe, others, "long") for _ in range(AT_WORK)]
        time.sleep(SLOW_S / 2)
        gone = client.async_infer("music_prompt", [text("text", "gone")], lambda result, error: None)
        time.sleep(SLOW_S / 2)
        with pytest.raises(InferenceServerException, match="server_busy"):
            describe(others, "one too many")
        gone.cancel()
        time.sleep(SOON_S)
        assert not any(answer.done() for answer in at_work)
        assert describe(others, "the next") == "the next"
    others.close()


def test_numbers_that_are_none_end_a_stream_with_an_error(client):
    take = start_therapy(client, "nan")
    take()
    with pytest.raises(InferenceServerException) as caught:
        take()
    assert str(from_wire(caught.value.message())) == "music_generator failed: music holds values that are not finite"


@pytest.mark.parametrize("after", [0, 2])
def test_a_called_model_that_dies_holds_its_caller_for_a_while_only(client, server, after):
    take = start_therapy(client, "calm" if after else "mute")
    for _ in range(1 + after):
        take()
    revive = kill_and_revive(server, client, "music_generator")
    with pytest.raises(InferenceServerException) as caught:
        list(iter(take, None))  # what was made before, and then; `take` does not wait for ever
    assert isinstance(from_wire(caught.value.message()), RequestTimeout | ServerError)
    revive()


def test_a_lease_that_ends_ends_the_music_with_an_error(client, server):
    lease = Lease()
    take = start_stream(
        client, "music_generator", [text("prompt", "calm"), text("music_spec", ""), text("lease", lease.token)]
    )
    take()
    lease.end()
    with pytest.raises(InferenceServerException) as caught:
        list(iter(take, None))
    assert isinstance(from_wire(caught.value.message()), RequestCancelled)
    assert has_stopped(server)


def test_a_reader_that_stops_for_a_while_stops_the_engine_and_loses_nothing(client, server):
    made = chunks_made(server)
    with Lease() as lease:
        lease.taken(0)
        take = start_stream(client, "music_therapy", [text("audio", "calm"), text("lease", lease.token)])
        wait_until(lambda: chunks_made(server) > made + AHEAD)
        wait_until(lambda: has_stopped(server))
        assert chunks_made(server) - made <= 2 * AHEAD + 1
        take()
        music = []
        for count in range(1, 5 * AHEAD):
            lease.taken(count)
            music.append(take().as_numpy("music")[0, 0])
    assert music == list(range(len(music)))
    wait_until(lambda: has_stopped(server))


def test_a_caller_that_dies_stops_the_called_model(client, server):
    take = start_therapy(client, "calm")
    take(), take()
    revive = kill_and_revive(server, client, "music_therapy")
    made = chunks_made(server)
    wait_until(lambda: has_stopped(server))
    assert chunks_made(server) - made <= 6 + SOON_S / CHUNK_S
    revive()


def test_what_plays_when_the_server_stops_is_played_to_its_end(tmp_path, server):
    """If that is within 10 s: Triton does not count it as in flight, and the launcher waits no longer for it."""
    options = {"log_file": tmp_path / "log", "models": tuple(TOYS), "exit_timeout_s": 10 * round(WAIT_S)}
    second = Server(server.repository, **options)
    with second, grpc.InferenceServerClient(second.grpc_url) as client, ThreadPoolExecutor(1) as pool:
        take = start_therapy(client, "calm")
        take()
        music = [take().as_numpy("music") for _ in range(CHUNKS - 60)]
        stopping = pool.submit(second.stop)
        music += [take().as_numpy("music") for _ in range(60)]
        client.stop_stream()
        stopping.result(WAIT_S)
    assert [chunk[0, 0] for chunk in music] == list(range(CHUNKS))


def test_nothing_is_left_when_the_server_stops(tmp_path, server):
    second = Server(
        server.repository,
        log_file=tmp_path / "log",
        models=("music_prompt",),
        exit_timeout_s=10 * round(WAIT_S),
    )
    with second:
        processes = list(second.process_ids())
        regions = list(Path("/dev/shm").glob(f"{second.name}-*"))
        modes = {region.stat().st_mode & 0o777 for region in regions}
        with grpc.InferenceServerClient(second.grpc_url) as client:
            assert describe(client, "a request before") == "a request before"
        stopping_s = time.monotonic()
    assert time.monotonic() - stopping_s < WAIT_S  # for what is in flight it would wait ten times as long
    assert len(processes) == 2
    assert regions
    assert modes == {0o600}  # what people say passes through them
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not any(region.exists() for region in regions)


def test_a_server_that_cannot_start_says_why(tmp_path, server):
    (tmp_path / "music_prompt" / "1").mkdir(parents=True)
    (tmp_path / "music_prompt" / "1" / "model.py").write_text("raise ValueError('no index: run attune export')")
    config = (server.repository / "music_prompt" / "config.pbtxt").read_text()
    (tmp_path / "music_prompt" / "config.pbtxt").write_text(config)
    broken = Server(tmp_path, log_file=tmp_path / "log")
    with pytest.raises(Exception, match=r"(?s)ended with code 1 .*no index: run attune export"):
        broken.start()
