"""Nothing calls home: every system call that addresses another machine is seen.

Run: pytest tests/integration/test_privacy.py     (all models and the export: -m slow)
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from attune_client import cli
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import GPU
from attune_ensemble.serving.launcher.container import container_command
from attune_ensemble.serving.launcher.layout import server_environment
from attune_ensemble.serving.launcher.ports import Ports
from tests.connections import needs_strace, strange_connections

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "sense_and_sensibility_0870.wav"
ATTUNE = Path(sys.executable).with_name("attune")

# ONNX Runtime and ChromaDB, each in a process of its own.
SERVE_SOME_MODELS = """
import os, sys
from pathlib import Path
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from attune_ensemble.serving.launcher.server import Server

repository, log = map(Path, sys.argv[1:])
models = ("text_tokenizer", "sentence_encoder", "music_prompt")
with Server(repository, log_file=log, models=models) as server:
    wish = InferInput("text", [1], "BYTES")
    wish.set_data_from_numpy(np.array([b"something calm"], dtype=object))
    answer = InferenceServerClient(server.grpc_url).infer("music_prompt", [wish])
    assert answer.as_numpy("prompt")[0]
"""


@pytest.fixture
def environment(tmp_path):
    """What a person has: none of the switches is set, and the temporary folder is empty."""
    (tmp_path / "tmp").mkdir()
    switches = NO_TELEMETRY.keys() | OFFLINE.keys()
    return {name: value for name, value in os.environ.items() if name not in switches} | {
        "TMPDIR": str(tmp_path / "tmp")
    }


def left_behind(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "tmp").iterdir()]


def test_the_watch_sees_a_look_up_and_a_connection(tmp_path, environment):
    """Or the tests below could not fail."""
    program = (
        "import contextlib, socket\n"
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "with contextlib.suppress(OSError): sender.sendto(b'', ('127.0.0.53', 53))\n"
        "with contextlib.suppress(OSError): sender.connect(('192.0.2.1', 9))\n"
        "with contextlib.suppress(OSError): sender.connect(('127.0.0.1', 9))\n"
    )
    if needs_strace.args[0]:
        pytest.skip(needs_strace.kwargs["reason"])
    seen = strange_connections([sys.executable, "-c", program], tmp_path / "trace", environment)
    assert len(seen) == 2, seen


@needs_strace
@pytest.mark.server
def test_serving_connects_to_nothing_but_loopback(tmp_path, environment):
    command = [sys.executable, "-c", SERVE_SOME_MODELS, str(ROOT / "model_repository"), str(tmp_path / "log")]
    assert strange_connections(command, tmp_path / "trace", environment) == []
    assert left_behind(tmp_path) == []


@needs_strace
@pytest.mark.slow
def test_serve_and_analyse_connect_to_nothing_but_loopback(tmp_path, environment):
    command = [str(ATTUNE), "serve", "--free-ports", "--repository", str(ROOT / "model_repository")]
    command += ["--log-file", str(tmp_path / "log"), "--", str(ATTUNE), "analyse", str(SAMPLE)]
    assert strange_connections(command, tmp_path / "trace", environment) == []
    assert left_behind(tmp_path) == []


@needs_strace
@pytest.mark.slow
def test_an_export_whose_weights_are_there_connects_to_nothing(tmp_path, environment):
    subprocess.run(["cp", "-r", str(ROOT / "model_repository"), str(tmp_path / "models")], check=True)
    command = [str(ATTUNE), "export", "--repository", str(tmp_path / "models"), "--force"]
    assert strange_connections(command, tmp_path / "trace", environment) == []
    assert set(left_behind(tmp_path)) <= {f"torchinductor_{getpass.getuser()}"}  # PyTorch's cache of compiled code


def test_the_switches_are_set_wherever_a_process_is_started(monkeypatch):
    switched = (NO_TELEMETRY | OFFLINE).items()
    assert server_environment({"ANONYMIZED_TELEMETRY": "True"}).items() >= switched
    command = container_command(GPU, ROOT / "model_repository", Ports())
    assert all(f"--env={name}={value}" in command for name, value in switched)
    for name in NO_TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    CliRunner().invoke(cli.main, ["analyse", "--help"])
    assert os.environ.items() >= NO_TELEMETRY.items()
