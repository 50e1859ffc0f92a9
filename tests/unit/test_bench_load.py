"""Loads, without a server: closed and open loops, and what is made of their samples.

pytest tests/unit/test_bench_load.py
"""

from __future__ import annotations

import asyncio
import itertools
import time
from statistics import mean, pstdev

import numpy as np
import pytest

from attune_client.bench.serving.asking import REFUSED, Sample, clock
from attune_client.bench.serving.load import Window, arrivals, closed_loop, open_loop
from attune_client.bench.serving.measuring import AtATime, PerSecond, Plan, Reading, measure
from attune_client.bench.serving.statistics import Counts
from attune_client.bench.serving.summary import Latency, summarise
from attune_client.bench.serving.targets import Request, Target, in_random_order
from attune_client.protocol.models import EMOTION_RECOGNITION, MUSIC_THERAPY

REQUESTS = tuple(Request(f"clip {number}", 2.0, {}) for number in range(5))


class Server:
    """Answers after `seconds(number)`, where the number is that of the request; notes how many were with it at once."""

    def __init__(self, seconds=lambda number: 0.01, error=lambda number: "") -> None:
        self._seconds, self._error = seconds, error
        self._numbers = itertools.count()
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, request, planned_s):
        number, sent_s = next(self._numbers), clock()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self._seconds(number))
        self.at_once -= 1
        return Sample(planned_s, sent_s, clock(), clock(), request.audio_s, self._error(number))


def run(loop, server, how, seconds, warmup_s):
    async def running():
        window = Window()
        load = asyncio.create_task(loop(server, in_random_order(REQUESTS, 0), how, window))
        await window.open_after(warmup_s)
        await window.close_after(seconds)
        return window, await load

    return asyncio.run(running())


def run_closed(server, concurrency, seconds=0.3, warmup_s=0.0):
    return run(closed_loop, server, concurrency, seconds, warmup_s)


def run_open(server, due_s, seconds=0.3, warmup_s=0.0):
    return run(open_loop, server, due_s, seconds, warmup_s)


# --- when ---


def test_arrivals_are_those_of_a_poisson_process():
    at_s = list(itertools.islice(arrivals(50.0, seed=1), 5000))
    gaps_s = np.diff([0.0, *at_s])
    assert min(gaps_s) > 0
    assert mean(gaps_s) == pytest.approx(1 / 50, rel=0.05)
    assert pstdev(gaps_s) == pytest.approx(mean(gaps_s), rel=0.05)  # exponential: as wide as it is long
    counts = np.bincount(np.array(at_s).astype(int))[:-1]
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.35)  # Poisson


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others():
    first, again, other = (list(itertools.islice(arrivals(3.0, seed), 20)) for seed in (7, 7, 8))
    assert first == again != other


def test_every_clip_has_its_turn_in_every_round_and_no_two_rounds_are_alike():
    order = list(itertools.islice(in_random_order(REQUESTS, seed=3), 4 * len(REQUESTS)))
    rounds = [tuple(order[start : start + 5]) for start in range(0, 20, 5)]
    assert all(set(each) == set(REQUESTS) for each in rounds)
    assert len(set(rounds)) > 1
    assert order == list(itertools.islice(in_random_order(REQUESTS, seed=3), 20))


# --- closed loops ---


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_closed_loop_has_so_many_in_flight(concurrency):
    server = Server()
    _, samples = run_closed(server, concurrency)
    assert server.most_at_once == concurrency
    assert server.at_once == 0
    assert len(samples) > concurrency


def test_a_closed_loop_waits_for_all_that_counts_and_keeps_the_load_up_meanwhile():
    """The first request is slow: it ends long after the window, and the others go on until then."""
    server = Server(lambda number: 0.4 if number == 0 else 0.01)
    window, samples = run_closed(server, 2, seconds=0.1)
    slow = max(samples, key=lambda sample: sample.latency_s)
    assert slow.latency_s >= 0.4
    assert window.holds(slow.planned_s)
    after = [sample for sample in samples if sample.planned_s >= window.end_s]
    assert len(after) >= 3
    assert summarise(samples, window, 1.0, streams=False).requests == len(samples) - len(after)


def test_after_an_error_a_closed_loop_waits_a_moment():
    server = Server(lambda number: 0.0, lambda number: REFUSED)
    _, samples = run_closed(server, 1, seconds=0.2)
    starts_s = [sample.sent_s for sample in samples]
    assert min(np.diff(starts_s)) >= 0.05


def test_a_window_is_not_closed_before_something_counts():
    """The one request of the warm-up outlasts the window: without the next one there would be nothing to tell."""
    server = Server(lambda number: 0.3 if number == 0 else 0.01)
    window, samples = run_closed(server, 1, seconds=0.1, warmup_s=0.05)
    assert window.end_s - window.begin_s >= 0.3
    summary = summarise(samples, window, 1.0, streams=False)
    assert summary.requests >= 1
    assert summary.answers_per_s > 0


def test_what_begins_in_the_warm_up_does_not_count():
    window, samples = run_closed(Server(), 1, seconds=0.1, warmup_s=0.1)
    early = [sample for sample in samples if sample.planned_s < window.start_s]
    assert early
    assert summarise(samples, window, 1.0, streams=False).requests <= len(samples) - len(early)


# --- open loops, and what is left out of closed ones ---


def test_an_open_loop_sends_whatever_is_in_flight():
    due_s = (0.01 * number for number in itertools.count())
    server = Server(lambda number: 0.2)
    run_open(server, due_s, seconds=0.1)
    assert server.most_at_once >= 9


def test_an_open_loop_sends_what_is_due_in_the_window_and_no_more_than_it_needs():
    due_s = [0.05 * number for number in range(1000)]
    window, samples = run_open(Server(), iter(due_s), seconds=0.3)
    planned_s = [round(sample.planned_s - window.begin_s, 6) for sample in samples]
    assert planned_s[:6] == [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert planned_s[-1] < window.end_s - window.begin_s + 0.5


def test_latency_counts_from_when_a_request_was_due_also_where_it_could_not_be_sent():
    """While the first request holds everything up for 0.3 s, five others become due."""
    stands_still = iter([True])

    async def ask(request, planned_s):
        sent_s = clock()
        if next(stands_still, False):
            time.sleep(0.3)
        return Sample(planned_s, sent_s, clock(), clock(), request.audio_s)

    window, samples = run_open(ask, iter([0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 60.0]), seconds=0.4)
    latencies_s = [sample.latency_s for sample in samples[:6]]
    for due_s, latency_s in zip([0.01, 0.05, 0.10, 0.15, 0.20, 0.25], latencies_s, strict=True):
        assert latency_s >= 0.31 - due_s - 0.005
    summary = summarise(samples, window, 1.0, streams=False)
    assert summary.requests == 6
    assert summary.late.p99 >= 0.2  # the generator says how late it was


def test_a_server_that_stands_still_is_seen_by_an_open_loop_and_hidden_by_a_closed_one():
    """Coordinated omission: 0.3 s of standing still are one sample of a closed loop, and thirty of an open one."""

    class StandsStill(Server):
        def __init__(self):
            super().__init__()
            self.until_s = clock() + 0.4

        async def __call__(self, request, planned_s):
            sent_s = clock()
            if 0 < self.until_s - sent_s < 0.3:
                await asyncio.sleep(self.until_s - sent_s)
            else:
                await asyncio.sleep(0.002)
            return Sample(planned_s, sent_s, clock(), clock(), request.audio_s)

    window, samples = run_closed(StandsStill(), 1, seconds=0.6)
    closed = summarise(samples, window, 1.0, streams=False)
    window, samples = run_open(StandsStill(), (0.01 * number for number in itertools.count()), seconds=0.6)
    opened = summarise(samples, window, 1.0, streams=False)
    assert closed.total.p50 < 0.1 < opened.total.p90
    slow = [sample for sample in samples if window.holds(sample.planned_s) and sample.latency_s > 0.05]
    assert len(slow) >= 15


# --- what they come to ---


def sample(planned_s, first_s, ended_s, error="", audio_s=2.0):
    return Sample(planned_s, planned_s + 0.001, first_s, ended_s, audio_s, error)


WINDOW = Window(0.0, 10.0, 20.0)


def test_percentiles_are_times_that_were_measured():
    latency = Latency.of(number / 100 for number in range(100, 0, -1))
    assert (latency.count, latency.p50, latency.p90, latency.p95, latency.p99) == (100, 0.5, 0.9, 0.95, 0.99)
    assert latency.avg == pytest.approx(0.505)
    few = Latency.of([3.0, 1.0, 2.0])
    assert (few.p50, few.p90, few.p99) == (2.0, 3.0, 3.0)
    assert Latency.of([]) is None


def test_throughput_is_of_what_ended_in_the_window_and_latency_of_what_was_due_in_it():
    samples = [
        sample(9.0, 9.5, 12.0),  # due before, ended within
        sample(11.0, 11.5, 13.0),
        sample(19.0, 21.0, 25.0),  # due within, ended after
        sample(20.0, 20.5, 21.0),  # neither
    ]
    summary = summarise(samples, WINDOW, 1.0, streams=False)
    assert summary.requests == 2
    assert summary.answers_per_s == pytest.approx(0.2)
    assert summary.audio_per_s == pytest.approx(0.4)
    assert summary.real_time_factor == pytest.approx(2.5)
    assert (summary.total.count, summary.total.avg, summary.total.p99) == (2, 4.0, 6.0)
    assert summary.first is None
    assert summary.late.avg == pytest.approx(0.001)


def test_errors_are_counted_by_kind_and_have_no_latency():
    samples = [
        sample(11.0, 12.0, 12.0),
        sample(12.0, 12.0, 12.1, REFUSED),
        sample(13.0, 13.0, 13.1, REFUSED),
        sample(14.0, 15.0, 18.0, "request_timeout"),
        sample(21.0, 21.0, 21.0, "server_error"),  # too late to count
    ]
    summary = summarise(samples, WINDOW, 1.0, streams=False)
    assert summary.errors == {REFUSED: 2, "request_timeout": 1}
    assert (summary.refused, summary.failed, summary.requests) == (2, 1, 4)
    assert (summary.total.count, summary.total.p99) == (1, 1.0)


def test_goodput_is_by_the_first_chunk_where_a_model_streams():
    samples = [sample(11.0, 11.5, 14.0), sample(12.0, 14.0, 14.5), sample(13.0, 13.1, 13.2), sample(14, 14, 14, "x")]
    assert summarise(samples, WINDOW, 1.0, streams=True).goodput_per_s == pytest.approx(0.2)
    assert summarise(samples, WINDOW, 1.0, streams=False).goodput_per_s == pytest.approx(0.1)
    assert summarise(samples, WINDOW, 1.0, streams=True).first.p50 == pytest.approx(0.5)


def test_a_load_without_an_answer_has_no_latency_and_no_factor():
    summary = summarise([sample(11.0, 12.0, 12.0, REFUSED)], WINDOW, 1.0, streams=True)
    assert (summary.total, summary.first, summary.real_time_factor) == (None, None, None)
    assert (summary.answers_per_s, summary.goodput_per_s) == (0.0, 0.0)


# --- one load with all around it ---


@pytest.mark.parametrize("load", [AtATime(2), PerSecond(40.0)])
def test_a_load_is_measured_between_two_readings(load):
    readings = iter(
        [
            Reading({"valence": Counts(5, 0, 5, 5, 0, 0, 0, 0, 0)}, {"valence": 1.0}),
            Reading({"valence": Counts(9, 0, 13, 7, 4_000_000, 0, 0, 0, 0)}, {"valence": 3.0, "guard": 1.0}),
        ]
    )

    async def read():
        return next(readings)

    target = Target(EMOTION_RECOGNITION, REQUESTS)
    measured = asyncio.run(measure(Server(), target, load, Plan(seconds=0.3, warmup_s=0.05), read))
    [stage] = measured.stages
    assert (stage.requests, stage.batch, stage.queue_ms) == (4, 4.0, 1.0)
    answers = measured.summary.answers_per_s * measured.summary.seconds
    assert measured.server_processor_ms == pytest.approx({"valence": 2000 / answers, "guard": 1000 / answers})
    assert (measured.model, measured.load) == (EMOTION_RECOGNITION.name, load)
    assert measured.summary.first is None
    assert 0 < measured.own_cores < 2


def test_music_has_a_first_chunk():
    async def read():
        return Reading()

    target = Target(MUSIC_THERAPY, REQUESTS)
    measured = asyncio.run(measure(Server(), target, AtATime(1), Plan(seconds=0.1, warmup_s=0.0), read))
    assert measured.summary.first is not None


def test_a_load_that_fails_ends_at_once():
    async def ask(request, planned_s):
        raise KeyError("a bug")

    async def read():
        return Reading()

    with pytest.raises(BaseExceptionGroup, match="unhandled errors"):
        asyncio.run(measure(ask, Target(EMOTION_RECOGNITION, REQUESTS), AtATime(1), Plan(60.0, 60.0), read))


def test_a_reading_that_fails_ends_the_load():
    async def read():
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(measure(Server(), Target(EMOTION_RECOGNITION, REQUESTS), AtATime(1), Plan(0.1, 0.0), read))
