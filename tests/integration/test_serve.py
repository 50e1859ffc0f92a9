"""`attune serve` around one small model, and what happens to it: `pytest tests/integration/test_serve.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def repository(tmp_path) -> Path:
    """The smallest model alone, so that a server is up in a second or two."""
    source, model = ROOT / "model_repository" / "emotion_classifier", tmp_path / "models" / "emotion_classifier"
    (model / "1").mkdir(parents=True)
    for file in ("config.pbtxt", "1/model.onnx"):
        (model / file).symlink_to(source / file)
    return model.parent


@pytest.fixture
def start(repository, tmp_path):
    """Start `attune serve` with temporary folder and log of its own."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    processes = []

    def run(*arguments: object, log: str = "server.log") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "attune_client", "serve", "--free-ports", "--repository", str(repository)]
        command += ["--log-file", str(tmp_path / log), *map(str, arguments)]
        environment = os.environ | {"TMPDIR": str(temporary)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.terminate()
        process.communicate(timeout=60)


def beside(program: str) -> list[str]:
    return ["--", sys.executable, "-c", program]


def wait_for(path: Path) -> str:
    deadline_s = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return path.read_text()


def test_a_server_that_dies_ends_the_command_and_is_an_error(start, tmp_path):
    program = "import os, signal, time; os.kill(int(os.environ['ATTUNE_SERVER_PID']), signal.SIGKILL); time.sleep(60)"
    started_s = time.monotonic()
    process = start(*beside(program))
    told = process.communicate(timeout=90)[1]
    assert process.returncode == 1
    assert "the server ended with code -9 while" in told
    assert str(tmp_path / "server.log") in told
    assert time.monotonic() - started_s < 45
    assert not list((tmp_path / "tmp").iterdir())


def test_a_signal_reaches_the_command_and_its_status_is_ours(start, tmp_path):
    ready = tmp_path / "ready"
    program = (
        f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); open({str(ready)!r}, 'w')"
        ".write('x'); time.sleep(60)"
    )
    process = start(*beside(program))
    wait_for(ready)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 9


def test_a_closed_terminal_stops_the_server(start):
    process = start()
    assert process.stderr is not None
    while "ready: gRPC" not in process.stderr.readline():
        assert process.poll() is None
    [server] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert not Path(f"/proc/{server}").exists()


def test_a_killed_server_leaves_nothing_once_the_next_has_started(start, tmp_path):
    ready = tmp_path / "ready"
    program = f"import os, time; open({str(ready)!r}, 'w').write(os.environ['ATTUNE_SERVER_PID']); time.sleep(60)"
    process = start(*beside(program))
    server = int(wait_for(ready))
    second = start(*beside("pass"))
    told = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert "server.log is the log of a server that runs" in told, "the launcher's log is not another's"
    process.kill()
    os.killpg(server, signal.SIGKILL)
    [left] = (tmp_path / "tmp").iterdir()
    assert list(Path("/dev/shm").glob(f"{left.name}-*"))
    os.utime(left, (time.time() - 3600,) * 2)
    third = start(*beside("pass"))
    assert third.wait(60) == 0, third.stderr.read()
    assert not list((tmp_path / "tmp").iterdir())
    assert not list(Path("/dev/shm").glob(f"{left.name}-*"))
    assert (tmp_path / "server.log.1").stat().st_size
