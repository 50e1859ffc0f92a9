"""What all tests share: where the samples and the repository are, and the one server of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune_client import AttuneClient
from attune_client.protocol.privacy import NO_TELEMETRY
from attune_ensemble.serving.launcher.ports import free_ports
from attune_ensemble.serving.supervisor.supervisor import Supervisor

os.environ.update(NO_TELEMETRY)  # the tests import the libraries themselves

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "samples").glob("*.wav"))


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """Recorded sentences, 5 to 7 s each."""
    return SAMPLES


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """What `attune serve` serves, with the whole repository, started once on free ports and stopped at the end."""
    log_file = tmp_path_factory.mktemp("server") / "server.log"
    with Supervisor(ROOT / "model_repository", ports=free_ports(), log_file=log_file) as server:
        yield server


@pytest.fixture
def client(server: Supervisor) -> Iterator[AttuneClient]:
    """A client of the session's server."""
    with AttuneClient(server.grpc_url, timeout_s=120) as client:
        yield client
