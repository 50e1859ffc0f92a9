"""What dies, hangs or fails under load comes back: `pytest tests/integration/test_supervision.py`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attune_client import AttuneClient
from attune_client.protocol.errors import AttuneError, ServerUnavailable
from attune_client.protocol.models import MODELS, MUSIC_PROMPT
from attune_client.protocol.profiles import EMBEDDED
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.serving.launcher.ports import free_ports
from attune_ensemble.serving.launcher.processes import stubs_of_session
from attune_ensemble.serving.supervisor.supervisor import Supervisor
from attune_ensemble.serving.supervisor.times import Times
from attune_export.repository_config import model_config, render
from tests.conftest import ROOT

pytestmark = pytest.mark.server

WAIT_S = 90.0
SOON_S = 1.5
PROCESSES = tuple(name for name, spec in MODELS.items() if not spec.steps)


class Told:
    """The events that a supervisor told, with the seconds at which it did."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str, dict]] = []

    def tell(self, event: str, **fields: object) -> None:
        self.events.append((time.monotonic(), event, fields))

    def wait_for(self, event: str, since_s: float, **fields: object) -> float:
        """Seconds from `since_s` to the first event of that name and with those fields after it."""
        found: list[float] = []

        def has_come() -> bool:
            found.extend(
                at_s - since_s
                for at_s, name, known in self.events
                if name == event and at_s >= since_s and fields.items() <= known.items()
            )
            return bool(found)

        wait_until(has_come)
        return found[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def kill(server: Supervisor, *models: str) -> None:
    for stubs in stubs_of_session(server.process_id, models).values():
        for stub in stubs:
            os.kill(stub.pid, signal.SIGKILL)


# --- all models ---


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def server(told, tmp_path_factory) -> Iterator[Supervisor]:
    log_file = tmp_path_factory.mktemp("supervision") / "server.log"
    with Supervisor(ROOT / "model_repository", ports=free_ports(), log_file=log_file, tell=told.tell) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[AttuneClient]:
    wait_until(lambda: server.status.is_ready)
    with AttuneClient(server.grpc_url, timeout_s=60) as client:
        yield client


def test_who_needs_a_dead_model_is_told_within_a_second_and_nobody_else(server, told, client, samples):
    client.analyse(samples[0])
    killed_s = time.monotonic()
    kill(server, "valence")
    assert told.wait_for("model_died", killed_s, model="valence") < SOON_S
    with pytest.raises(ServerUnavailable, match="the process of valence has died"):
        client.analyse(samples[0])
    assert time.monotonic() - killed_s < 2 * SOON_S
    assert client.infer(MUSIC_PROMPT, {"emotion": bytes_tensor("calm")})["prompt"][0]
    for wish in ({"emotion": "calm"}, {"text": "rain"}, {"vad": (3, 2, 3)}):
        with client.play(duration_s=1, **wish) as stream:
            assert sum(map(len, stream)) == stream.session.sample_rate
    with pytest.raises(ServerUnavailable, match="the process of valence has died"):
        client.play(samples[0])
    assert not server.status.is_ready
    told.wait_for("model_recovered", killed_s, model="valence")
    assert client.analyse(samples[0]).transcript


@pytest.mark.parametrize("model", ["music_generator", "music_therapy"])
def test_a_listener_is_told_of_the_end(server, told, client, model):
    with client.play(emotion="calm", duration_s=600) as stream:
        next(stream)
        killed_s = time.monotonic()
        kill(server, model)
        told.wait_for("model_died", killed_s, model=model)
        died_s = time.monotonic()
        with pytest.raises(ServerUnavailable, match=f"the process of {model} has died"):
            sum(map(len, stream))
        assert time.monotonic() - died_s < SOON_S
    told.wait_for("model_recovered", killed_s, model=model)
    with client.play(emotion="calm", duration_s=1) as stream:
        assert sum(map(len, stream)) == stream.session.sample_rate


def test_all_models_come_back_that_die_at_once(server, told, client, samples):
    killed_s, pid = time.monotonic(), server.process_id
    kill(server, *PROCESSES)
    for model in PROCESSES:
        told.wait_for("model_recovered", killed_s, model=model)
    assert server.process_id == pid, "the server itself lives on"
    assert client.analyse(samples[0]).transcript


def test_a_dead_server_is_told_to_everybody_and_comes_back(server, told, client, samples):
    def analyse() -> AttuneError | None:
        try:
            client.analyse(samples[0])
        except AttuneError as error:
            return error
        return None

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(analyse) for _ in range(4)]
        time.sleep(0.3)
        killed_s = time.monotonic()
        os.kill(server.process_id, signal.SIGKILL)
        assert told.wait_for("server_died", killed_s) < SOON_S
        errors = [answer.result(2 * SOON_S) for answer in answers]
    assert any(errors)
    assert all(isinstance(error, ServerUnavailable) for error in errors if error)
    told.wait_for("ready", killed_s)
    assert client.analyse(samples[0]).transcript


def test_what_plays_when_it_stops_is_played_to_its_end(server, told, client):
    """The last of the tests with this server."""
    with client.play(emotion="calm", duration_s=60) as stream:
        frames = len(next(stream))
        asked_s = time.monotonic()
        server.ask_to_stop()
        told.wait_for("draining", asked_s, in_flight=1)
        with pytest.raises(ServerUnavailable, match="takes no new requests"):
            client.infer(MUSIC_PROMPT, {"emotion": bytes_tensor("calm")})
        for chunk in stream:
            frames += len(chunk)
            time.sleep(0.05)
        assert frames == 60 * stream.session.sample_rate
    told.wait_for("drained", asked_s, in_flight=0)
    server.wait()
    assert server.error is None


# --- one that hangs or fails ---

HANGING = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import MUSIC_PROMPT
from attune_ensemble.serving.adapter import Adapter

class TritonPythonModel:
    def initialize(self, args):
        self.triton = Adapter(MUSIC_PROMPT, args, pb_utils)

    def execute(self, requests):
        while (self.triton.folder / "hang").exists():
            time.sleep(0.1)
        return self.triton.answer_concurrently(requests, self.answer)

    def answer(self, inputs, context):
        if (self.triton.folder / "fail").exists():
            raise ServerError("the device is lost")
        return {"prompt": inputs["text"]}

    def finalize(self):
        self.triton.close()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a model that hangs as long as there is a file `hang` in it, and fails with `fail`."""
    folder = tmp_path / "repository" / MUSIC_PROMPT.name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(HANGING)
    (folder.parent / "config.pbtxt").write_text(render(model_config(MUSIC_PROMPT.name, EMBEDDED)))
    return folder


@pytest.mark.parametrize(("file", "reason"), [("hang", "silent"), ("fail", "failing")])
def test_a_model_that_hangs_or_fails_is_brought_back(folder, tmp_path, file, reason):
    told, times = Told(), Times(idle_s=0.5, answer_s=1.5)
    with Supervisor(
        folder.parents[1], ports=free_ports(), log_file=tmp_path / "log", times=times, tell=told.tell
    ) as server:
        pid = server.process_id
        since_s = time.monotonic()
        (folder / file).touch()
        told.wait_for("model_unresponsive", since_s, model=MUSIC_PROMPT.name, reason=reason)
        (folder / file).unlink()
        told.wait_for("model_recovered", since_s)
        assert server.process_id == pid
        with AttuneClient(server.grpc_url, timeout_s=10) as client:
            assert client.infer(MUSIC_PROMPT, {"text": bytes_tensor("calm")})["prompt"][0] == b"calm"
