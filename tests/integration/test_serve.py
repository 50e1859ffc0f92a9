"""`attune serve` around one small model, and what happens to it: `pytest tests/integration/test_serve.py`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from attune_client import AttuneClient
from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.models import EMOTION_CLASSIFIER
from attune_ensemble.serving.launcher.layout import build_layout, find_package, server_environment
from attune_ensemble.serving.launcher.processes import process_of, state_of, stubs_of_session
from tests.conftest import ROOT

MODEL = EMOTION_CLASSIFIER.name
SOON_S = 1.0
WAIT_S = 60.0


@pytest.fixture
def repository(tmp_path) -> Path:
    """The smallest model alone, so that a server is up in a second or two."""
    source, model = ROOT / "model_repository" / MODEL, tmp_path / "models" / MODEL
    (model / "1").mkdir(parents=True)
    for file in ("config.pbtxt", "1/model.onnx"):
        (model / file).symlink_to(source / file)
    return model.parent


class Serving:
    """A running `attune serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict] = []

    def wait_for(self, event: str) -> dict:
        """The next event of that name; fails where it ends before."""
        assert self.process.stderr is not None
        while line := self.process.stderr.readline():
            if line.startswith("{"):
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == event:
                    return self.events[-1]
        raise AssertionError(f"ended before {event}: {self.events}")

    def server(self) -> int:
        """Process id of tritonserver."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        [server] = [pid for pid in pids if b"tritonserver" in Path(f"/proc/{pid}/cmdline").read_bytes()[:200]]
        return server

    def stub(self) -> int:
        """Process id of the model."""
        [stub] = stubs_of_session(self.server(), (MODEL,))[MODEL]
        return stub.pid

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of health."""
        [ready] = [event for event in self.events if event["event"] == "ready"][-1:]
        try:
            with urllib.request.urlopen(f"http://{ready['http']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def start(repository, tmp_path) -> Iterator[Callable[..., Serving]]:
    """Start `attune serve` with temporary folder and log of its own."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    serving = []

    def run(*arguments: object, log: str = "server.log") -> Serving:
        command = [sys.executable, "-m", "attune_client", "serve", "--free-ports", "--repository", str(repository)]
        command += ["--log-file", str(tmp_path / log), *map(str, arguments)]
        environment = os.environ | {"TMPDIR": str(temporary)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        serving.append(Serving(process))
        return serving[-1]

    yield run
    for each in serving:
        each.process.terminate()
        each.process.communicate(timeout=60)


def classify(url: str) -> float:
    with AttuneClient(url, timeout_s=10) as client:
        vad = {"valence": np.full((1, 1), 3, np.float32), "arousal_dominance": np.full((1, 2), 3, np.float32)}
        return float(client.infer(EMOTION_CLASSIFIER, vad)["emotion_probabilities"].sum())


def beside(program: str) -> list[str]:
    return ["--", sys.executable, "-c", program]


def wait_for_text(path: Path) -> str:
    wait_until(lambda: path.exists() and bool(path.read_text()))
    return path.read_text()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def left_behind(tmp_path: Path) -> list[Path]:
    """Temporary folders of `attune serve`, and the shared memory that is named after them."""
    return list((tmp_path / "tmp").iterdir())


# --- what dies comes back ---


def test_a_model_that_dies_is_told_and_comes_back(start):
    serving = start()
    ready = serving.wait_for("ready")
    assert serving.page("/readyz") == (200, "ready\n")
    stub = serving.stub()
    killed_s = time.monotonic()
    os.kill(stub, signal.SIGKILL)
    died = serving.wait_for("model_died")
    assert time.monotonic() - killed_s < SOON_S
    assert (died["model"], died["pid"], died["signal"]) == (MODEL, stub, "SIGKILL")
    assert serving.page("/readyz") == (503, f"degraded: model {MODEL}\n")
    assert serving.page("/livez")[0] == 200
    with pytest.raises(ServerUnavailable, match=f"the process of {MODEL} has died"):
        classify(ready["grpc"])
    assert time.monotonic() - killed_s < 2 * SOON_S
    serving.wait_for("model_recovered")
    assert time.monotonic() - killed_s < 10
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)
    assert serving.stub() != stub
    assert serving.page("/readyz")[0] == 200
    assert json.loads(serving.page("/status")[1])["models"][MODEL] == {"ready": True, "restarts": 1}
    assert f'attune_model_restarts_total{{model="{MODEL}"}} 1\n' in serving.page("/metrics")[1]


def test_a_model_that_is_stopped_is_ended_and_comes_back(start):
    serving = start()
    ready = serving.wait_for("ready")
    stub = serving.stub()
    os.kill(stub, signal.SIGSTOP)
    told = serving.wait_for("model_unresponsive")
    assert (told["model"], told["reason"], told["pid"]) == (MODEL, "stopped", stub)
    serving.wait_for("model_recovered")
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)
    wait_until(lambda: not Path(f"/proc/{stub}").exists())


def test_a_server_that_dies_is_started_again_at_the_same_ports(start, tmp_path):
    serving = start()
    ready = serving.wait_for("ready")
    before = serving.server()
    os.kill(before, signal.SIGKILL)
    died = serving.wait_for("server_died")
    assert died["code"] == -signal.SIGKILL
    with pytest.raises(ServerUnavailable, match="is being started again"):
        classify(ready["grpc"])
    assert serving.page("/readyz")[0] == 503
    assert serving.wait_for("server_restarting")["attempt"] == 1
    again = serving.wait_for("ready")
    assert again["grpc"] == ready["grpc"]
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)
    assert serving.server() != before
    assert len(left_behind(tmp_path)) == 1, "what the first one had is gone"
    assert "attune_server_restarts_total 1\n" in serving.page("/metrics")[1]
    log = (tmp_path / "server.log").read_text()
    assert log.count("Started GRPCInferenceService") == 2, "the log goes on"


def test_a_server_that_is_stopped_is_started_again(start):
    serving = start()
    ready = serving.wait_for("ready")
    os.kill(serving.server(), signal.SIGSTOP)
    assert serving.wait_for("server_died")["code"] == -signal.SIGKILL
    serving.wait_for("ready")
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)


# --- what is left of it ---


def test_a_killed_supervisor_leaves_nothing(start, tmp_path):
    serving = start()
    ready = serving.wait_for("ready")
    processes = [process_of(serving.server()), process_of(serving.stub())]
    [folder] = left_behind(tmp_path)
    assert list(Path("/dev/shm").glob(f"{folder.name}-*"))
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: not left_behind(tmp_path))
    assert all(state_of(each).has_ended for each in processes)
    assert not list(Path("/dev/shm").glob(f"{folder.name}-*"))
    with pytest.raises(ServerUnavailable):
        classify(ready["grpc"])


def test_a_supervisor_that_is_killed_while_it_starts_leaves_nothing(start, tmp_path):
    serving = start()
    serving.wait_for("starting")
    wait_until(lambda: any((folder / "g:1").exists() for folder in left_behind(tmp_path)))
    server = process_of(serving.server())
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: not left_behind(tmp_path))
    assert state_of(server).has_ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_in_order(start, tmp_path, number):
    serving = start()
    serving.wait_for("ready")
    server = serving.server()
    serving.process.send_signal(number)
    serving.wait_for("draining")
    serving.wait_for("stopped")
    assert serving.process.wait(60) == 0
    assert not Path(f"/proc/{server}").exists()
    assert not left_behind(tmp_path)


def test_a_signal_while_it_starts_stops_it(start, tmp_path):
    serving = start()
    serving.wait_for("starting")
    wait_until(lambda: bool(left_behind(tmp_path)))
    serving.process.send_signal(signal.SIGTERM)
    serving.wait_for("stopped")
    assert serving.process.wait(60) == 0
    assert not left_behind(tmp_path)


def test_what_an_older_version_left_is_cleared_away_by_the_next(start, tmp_path):
    """A machine that lost its power, or a janitor that was killed as well."""
    left = tmp_path / "tmp" / "attune-serve-0123456789abcdef"
    left.mkdir()
    region = Path("/dev/shm") / f"{left.name}-region"
    region.touch()
    os.utime(left, (time.time() - 3600,) * 2)
    serving = start(*beside("pass"))
    assert serving.process.wait(60) == 0
    assert not left_behind(tmp_path)
    assert not region.exists()


# --- another profile, by the server on the PATH, as in NVIDIA's image ---

WRAPPER = """#!/bin/sh
export LD_LIBRARY_PATH={libraries} PATH={programs}
exec {binary} --backend-directory={backends} "$@"
"""


def test_another_profile_is_served_by_the_server_on_the_path(start, repository, tmp_path, monkeypatch):
    """A wrapper makes of the packaged one a server that has its backends, as the image's has."""
    model = repository / MODEL
    (model / "configs").mkdir()
    (model / "configs" / "gpu.pbtxt").write_text((model / "config.pbtxt").read_text())
    (model / "config.pbtxt").unlink()
    (model / "config.pbtxt").write_text("backend: 'nobodys'")  # what must not be served
    built = build_layout(tmp_path / "layout", find_package())
    environment = server_environment(os.environ)
    wrapper = tmp_path / "bin" / "tritonserver"
    wrapper.parent.mkdir()
    wrapper.write_text(
        WRAPPER.format(
            libraries=environment["LD_LIBRARY_PATH"],
            programs=environment["PATH"],
            binary=built.binary,
            backends=built.backend_dir,
        )
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    serving = start("--profile", "gpu")
    ready = serving.wait_for("ready")
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)
    os.kill(serving.stub(), signal.SIGKILL)
    serving.wait_for("model_recovered")
    assert classify(ready["grpc"]) == pytest.approx(1.0, abs=1e-4)


# --- beside a command ---


def test_a_server_that_dies_under_a_command_comes_back(start, tmp_path):
    program = (
        "import os, signal, time; from attune_client import AttuneClient\n"
        "os.kill(int(os.environ['ATTUNE_SERVER_PID']), signal.SIGKILL); time.sleep(2); client = AttuneClient()\n"
        "from tests.integration.test_serve import classify, wait_until\n"
        "def answers():\n    try: return classify(os.environ['ATTUNE_URL']) > .9\n    except Exception: return False\n"
        "wait_until(answers); raise SystemExit(7)"
    )
    serving = start(*beside(program))
    serving.wait_for("server_died")
    assert serving.process.wait(90) == 7
    assert not left_behind(tmp_path)


def test_a_server_that_cannot_be_started_again_ends_the_command(start, tmp_path, repository):
    ready = tmp_path / "ready"
    program = f"import time; open({str(ready)!r}, 'w').write('x'); time.sleep(600)"
    serving = start(*beside(program))
    wait_for_text(ready)
    shutil.rmtree(repository)
    os.kill(serving.server(), signal.SIGKILL)
    serving.wait_for("gave_up")
    told = serving.process.communicate(timeout=60)[1]
    assert serving.process.returncode == os.EX_SOFTWARE
    assert "the server ended" in told
    assert str(tmp_path / "server.log") in told
    assert not left_behind(tmp_path)


def test_a_signal_reaches_the_command_and_its_status_is_ours(start, tmp_path):
    ready = tmp_path / "ready"
    program = (
        f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); open({str(ready)!r}, 'w')"
        ".write('x'); time.sleep(60)"
    )
    serving = start(*beside(program))
    wait_for_text(ready)
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == 9


def test_a_killed_supervisor_leaves_no_command(start, tmp_path):
    """Nor what that has started: without a server it could only fail."""
    notes = [tmp_path / "command", tmp_path / "child"]
    program = (
        "import os, subprocess, sys, time\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "if sys.argv[2:]: subprocess.Popen([sys.executable, __file__, sys.argv[2]], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    serving = start("--", sys.executable, script, *notes)
    processes = [process_of(int(wait_for_text(note))) for note in notes]
    processes += [process_of(serving.server()), process_of(serving.stub())]
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: all(state_of(each).has_ended for each in processes))
    wait_until(lambda: not left_behind(tmp_path))


def test_interrupted_before_the_command_has_begun(start, tmp_path):
    serving = start(*beside("raise SystemExit(3)"))
    serving.wait_for("starting")
    wait_until(lambda: bool(left_behind(tmp_path)))
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(60) == 130


# --- what it says when it cannot serve ---


def test_a_log_of_another_server_is_not_written_to(start, tmp_path):
    first = start()
    first.wait_for("ready")
    second = start()
    told = second.process.communicate(timeout=60)[1]
    assert second.process.returncode == os.EX_UNAVAILABLE
    assert "server.log is the log of a server that runs" in told


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port"])
def test_a_port_of_another_server_is_named(start, repository, tmp_path, option):
    first = start()
    taken = first.wait_for("ready")["grpc"].rpartition(":")[2]
    command = [sys.executable, "-m", "attune_client", "serve", "--repository", str(repository), option, taken]
    command += ["--log-file", str(tmp_path / "second.log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == os.EX_UNAVAILABLE
    assert f"{taken} of 127.0.0.1 cannot be used" in done.stderr


def test_a_model_that_cannot_be_loaded_is_told(start, repository, tmp_path):
    model = repository / MODEL / "1" / "model.onnx"
    model.unlink()
    model.write_bytes(b"no graph")
    serving = start()
    told = serving.process.communicate(timeout=60)[1]
    assert serving.process.returncode == os.EX_CONFIG
    assert MODEL in told
    assert not left_behind(tmp_path)
