"""What the running server measures is what alerts and dashboard read: `pytest tests/integration/test_metrics.py`."""

from __future__ import annotations

import urllib.request

import pytest

from attune_client import AttuneClient
from attune_ensemble.serving.supervisor.metrics import METRICS
from attune_ensemble.serving.supervisor.supervisor import Supervisor
from tests.conftest import SAMPLES
from tests.unit.test_observability import TRITONS

pytestmark = pytest.mark.server


def samples_of(server: Supervisor) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_music_is_measured_as_its_listener_hears_it(server, client: AttuneClient):
    before = samples_of(server)
    with client.play(emotion="calm", duration_s=2, seed=7) as stream:
        played_s = sum(len(chunk) for chunk in stream) / stream.session.sample_rate
    after = samples_of(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    label = '{model="music_therapy"}'
    assert grown(f"attune_guard_audio_seconds_total{label}") == pytest.approx(played_s, abs=1e-3)
    assert grown(f"attune_guard_first_audio_seconds_count{label}") == 1
    assert 0 < grown(f"attune_guard_first_audio_seconds_sum{label}") < 60
    assert grown('attune_guard_requests_total{model="music_therapy",outcome="answered"}') == 1


def test_all_that_is_declared_is_told(server, client: AttuneClient):
    with client.play(emotion="calm", duration_s=1, seed=7) as stream:
        list(stream)
    client.analyse(SAMPLES[0])
    told = {name.partition("{")[0] for name in samples_of(server)}
    histograms = {name for name, (kind, _) in METRICS.items() if kind == "histogram"}
    assert told >= TRITONS
    assert told >= METRICS.keys() - histograms
    assert told >= {name + part for name in histograms for part in ("_bucket", "_sum", "_count")}
