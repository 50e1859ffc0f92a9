"""Two real replicas, each on a core of its own, behind Envoy: shares, a death, a rolling restart, and what a second
replica brings. It takes some minutes, 7 GiB, and two cores that nothing else uses:

    pytest -m slow -s tests/integration/test_replicas.py

What was measured is printed and written to out/replicas.json, for `attune plan` and the READMEs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from attune_client.bench.report import hardware
from attune_ensemble.chaos.harness.calls import Analyse, Call, Ended, Outcome, Play, Prompt, describe
from tests.conftest import ROOT, SAMPLES
from tests.envoy_process import needs_envoy
from tests.replicas import PATIENCE_S, Fleet, Replica, ask_all, load, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    needs_envoy,
    pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset: apt-get install util-linux"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores"),
]

STREAMS, CALLS = 100, 400
SHARE = (0.4, 0.6)
ROLLING = 500
SCALE_OUT = 1.8

# How long each arrangement is measured, how often, and how many ask at a time: enough for both cores.
MEASURED_S, ROUNDS, THREADS = 20.0, 3, 8

ROOM = ROOT / "out"
MUSIC = Play(seconds=2.0)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("replicas")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    """What the tests put down; written at the end, beside what an earlier run of other tests has left."""
    path = ROOM / "replicas.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found |= {"hardware": hardware(), "load_average": os.getloadavg()}
    yield found
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def not_answered(ended: Sequence[Ended]) -> list[Ended]:
    return [one for one in ended if one.outcome is not Outcome.ANSWERED]


def grown(replica: Replica, before: dict[str, int]) -> dict[str, int]:
    """What a replica has answered since then, by model."""
    return {model: count - before.get(model, 0) for model, count in replica.answered().items()}


def test_of_100_streams_and_400_calls_each_replica_gets_half(fleet, results):
    calls: list[Call] = [MUSIC, Prompt(), Prompt(), Prompt(), Prompt()] * STREAMS
    before = [replica.answered() for replica in fleet.replicas]
    with fleet.envoy("shares") as envoy:
        ended = ask_all(envoy.url, calls, at_a_time=10)
    assert not not_answered(ended), describe(not_answered(ended))
    shares = [grown(*pair) for pair in zip(fleet.replicas, before, strict=True)]
    counts = [(each.get("music_therapy", 0), each.get("music_prompt", 0)) for each in shares]
    results["shares"] = counts
    assert [sum(column) for column in zip(*counts, strict=True)] == [STREAMS, CALLS]
    for streams, prompts in counts:
        assert SHARE[0] <= (streams + prompts) / (STREAMS + CALLS) <= SHARE[1]


def test_after_kill_9_what_was_in_flight_ends_cleanly_and_everything_new_succeeds(fleet, results):
    dead = fleet.replicas[0]
    with fleet.envoy("death") as envoy, load(envoy.url, [Play(seconds=10.0, pause_s=0.2), Prompt()], THREADS) as tally:
        until(lambda: len(tally.all()) >= 2 * THREADS, PATIENCE_S)
        killed_s = dead.kill()
        until(lambda: sum(one.started_s > killed_s for one in tally.all()) >= 100, 3 * PATIENCE_S)
        dead.launch()
        dead.wait_ready()
        until(lambda: envoy.healthy() == 2, PATIENCE_S)
        back_s = time.monotonic()
        until(lambda: sum(one.started_s > back_s for one in tally.all()) >= 60, 3 * PATIENCE_S)
    ended = tally.all()
    earlier = [one for one in ended if one.started_s <= killed_s]
    new = [one for one in ended if one.started_s > killed_s]
    results["death"] = {
        "in_flight_ended": len(not_answered(earlier)),
        "new": len(new),
        "new_lost": len(not_answered(new)),
        "back_after_s": back_s - killed_s,
    }
    assert not_answered(earlier), "nothing was in flight there"
    assert {one.outcome for one in not_answered(earlier)} == {Outcome.ERROR}, describe(not_answered(earlier))
    assert not not_answered(new), describe(not_answered(new))
    assert sum(dead.answered().values()) >= 15, "it is asked again"


def test_a_rolling_restart_loses_nothing(fleet, results):
    calls: list[Call] = [Prompt(), Prompt(), Prompt(), Prompt(), MUSIC]
    with fleet.envoy("rolling") as envoy, load(envoy.url, calls, threads=4) as tally:
        until(lambda: len(tally.all()) >= ROLLING // 10, 3 * PATIENCE_S)
        for replica in fleet.replicas:
            replica.restart()
            until(lambda: envoy.healthy() == 2, PATIENCE_S)
        until(lambda: len(tally.all()) >= ROLLING, 10 * PATIENCE_S)
    lost = not_answered(tally.all())
    results["rolling_restart"] = {"requests": len(tally.all()), "lost": len(lost)}
    assert not lost, describe(lost)


def test_a_second_replica_on_a_second_core_brings_1_8_times_as_much(fleet, results):
    """The same work, one arrangement after the other and again: recordings, which keep a core busy."""
    calls: list[Call] = [Analyse(path.read_bytes()) for path in SAMPLES]
    arrangements = {"one": fleet.replicas[:1], "two": fleet.replicas}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in arrangements}
    for number in range(ROUNDS):
        for name, replicas in arrangements.items():
            with fleet.envoy(f"{name}-{number}", replicas) as envoy:
                measured[name].append(throughput(envoy.url, replicas, calls))
    rates = {name: statistics.median(rate for rate, _ in each) for name, each in measured.items()}
    results["scale_out"] = {
        "recordings": len(calls),
        "per_s": {name: [round(rate, 3) for rate, _ in each] for name, each in measured.items()},
        "per_processor_s": {name: [round(rate, 3) for _, rate in each] for name, each in measured.items()},
        "ratio": round(rates["two"] / rates["one"], 3),
    }
    print(json.dumps(results["scale_out"]))
    assert rates["two"] >= SCALE_OUT * rates["one"], results["scale_out"]


def throughput(url: str, replicas: Sequence[Replica], calls: Sequence[Call]) -> tuple[float, float]:
    """Answers in a second, and in a second of the replicas' processor time, over `MEASURED_S` of a full load."""
    with load(url, calls, THREADS) as tally:
        until(lambda: len(tally.all()) >= THREADS, PATIENCE_S)  # all are at it
        begun_s, processor_s = time.monotonic(), sum(replica.processor_s() for replica in replicas)
        time.sleep(MEASURED_S)
        ended_s, spent_s = time.monotonic(), sum(replica.processor_s() for replica in replicas) - processor_s
        done = [one for one in tally.all() if begun_s <= one.at_s <= ended_s]
    assert not not_answered(done), describe(not_answered(done))
    return len(done) / (ended_s - begun_s), len(done) / spent_s
