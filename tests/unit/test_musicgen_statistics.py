"""What the music engine counts: `.venv/bin/pytest tests/unit/test_musicgen_statistics.py`."""

from __future__ import annotations

import pytest

from attune_ensemble.music.musicgen import statistics
from attune_ensemble.music.musicgen.statistics import METRICS, EngineCounters


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(statistics, "time", clock)
    return clock


def step(counters, clock, seconds, per_s=50):
    for _ in range(round(seconds * per_s)):
        clock.now_s += 1 / per_s
        counters.stepped()
        counters.made(2)


def test_rates_are_over_the_last_ten_seconds(clock):
    counters = EngineCounters(frame_rate=50)
    step(counters, clock, 30)
    assert counters.read(0, 0).steps_per_s == pytest.approx(50, rel=0.02)
    assert counters.read(0, 0).audio_per_s == pytest.approx(2, rel=0.02)
    for idle_s, share in [(2.5, 0.75), (2.5, 0.5), (4.0, 0.1), (1.2, 0.0)]:
        clock.now_s += idle_s
        assert counters.read(0, 0).steps_per_s == pytest.approx(50 * share, abs=1)
        assert counters.read(0, 0).audio_per_s == pytest.approx(2 * share, abs=0.04)
    assert counters.read(0, 0).steps == 1500


def test_after_a_pause_only_what_is_new_counts(clock):
    counters = EngineCounters(frame_rate=50)
    step(counters, clock, 5)
    clock.now_s += 3600
    step(counters, clock, 4)
    assert counters.read(0, 0).steps_per_s == pytest.approx(20, rel=0.02)


def test_a_young_engine_has_rates_over_its_life(clock):
    counters = EngineCounters(frame_rate=50)
    assert counters.read(0, 0).steps_per_s == 0
    step(counters, clock, 2)
    assert counters.read(0, 0).steps_per_s == pytest.approx(50, rel=0.02)


def test_every_metric_has_a_value(clock):
    metrics = EngineCounters(50).read(3, 4, healthy=False).metrics()
    assert metrics.keys() == METRICS.keys()
    assert (metrics["musicgen_healthy"], metrics["musicgen_active_slots"]) == (0, 3)
