"""What the unit tests share: models that an adapter asks at the server's own port, and a server behind a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attune_ensemble.serving.own_server import OWN_URL
from tests.fake_stub import Dead, Streams
from tests.fake_triton import FakeTriton
from tests.fake_upstream import FakeUpstream


@pytest.fixture
def streams(monkeypatch) -> Iterator[Callable[[Streams], FakeTriton]]:
    """Let a function answer what the adapters ask at the server's own port."""
    servers: list[FakeTriton] = []

    def serve(called: Streams) -> FakeTriton:
        servers.append(FakeTriton(called))
        monkeypatch.setenv(OWN_URL, servers[-1].url)
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def dead(streams) -> Iterator[Dead]:
    model = Dead()
    streams(model)
    yield model
    model.revived.set()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[FakeUpstream]:
    """A server behind a guard, at the end of whose test whatever waits is let go."""
    server = FakeUpstream(tmp_path)
    yield server
    server.release.set()
    server.close()
