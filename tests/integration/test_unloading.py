"""What is left of a model that the server has unloaded: `pytest tests/integration/test_unloading.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from attune_client import AttuneClient
from attune_client.protocol.models import MODELS
from attune_ensemble.serving.launcher.server import Server
from tests.conftest import ROOT

pytestmark = pytest.mark.server

WAIT_S = 20.0
ADAPTERS = sorted(path.parents[1].name for path in (ROOT / "model_repository").glob("*/1/model.py"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models are named one by one: only such may be unloaded."""
    log_file = tmp_path_factory.mktemp("unloading") / "server.log"
    repository = ROOT / "model_repository"
    with Server(repository, log_file=log_file, models=tuple(MODELS)) as server:
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def process_of(server: Server, model: str) -> Path:
    path = f"/{model}/1/model.py".encode()
    processes = (Path(f"/proc/{process}") for process in server.process_ids())
    (found,) = (process for process in processes if path in (process / "cmdline").read_bytes())
    return found


def index_copies(process: Path) -> list[Path]:
    """The private copies of the knowledge index that a process has open."""
    opened = {link.readlink() for link in (process / "fd").iterdir()}
    return [path for path in opened if path.name.startswith("attune-index-")]


def test_every_model_gives_back_what_it_holds(server, samples):
    with AttuneClient(server.grpc_url, timeout_s=120) as client, client.play(samples[0], duration_s=1) as stream:
        assert sum(map(len, stream)) == stream.session.sample_rate
    processes = {model: process_of(server, model) for model in ADAPTERS}
    copies = index_copies(processes["music_prompt"])
    assert copies
    with grpc.InferenceServerClient(server.grpc_url) as triton:
        for model in ADAPTERS:
            assert f"{model}: released" not in server.log_file.read_text()
            triton.unload_model(model)
            wait_until(lambda: f"{model}: released" in server.log_file.read_text())  # noqa: B023
            wait_until(lambda: not processes[model].exists())  # noqa: B023
    assert not any(copy.exists() for copy in copies)
    log = server.log_file.read_text()
    assert "Traceback" not in log
    assert "finalize" not in log  # where one fails, the server's line has its name
