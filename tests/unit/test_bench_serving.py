"""`attune bench serving` and `scaling` against a server that does as it is told.

pytest tests/unit/test_bench_serving.py
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import entry_points

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client import AsyncAttuneClient
from attune_client.bench.pipeline import peak_memory_gib
from attune_client.bench.serving.asking import REFUSED, ask_server, clock
from attune_client.bench.serving.clips import CUTS_S, Clip, clips_of_length, mixed_clips, read_clips
from attune_client.bench.serving.load import Window, arrivals, closed_loop, open_loop
from attune_client.bench.serving.measuring import AtATime, Measured, PerSecond
from attune_client.bench.serving.processor import GUARD, SERVER, server_processor_s
from attune_client.bench.serving.report import generator_line, stage_table, throughput_table
from attune_client.bench.serving.statistics import Counts, TritonStatistics, differences
from attune_client.bench.serving.summary import summarise
from attune_client.bench.serving.targets import TARGETS, Request, in_random_order, make_target
from attune_client.cli import main
from attune_client.protocol import errors
from attune_client.protocol.models import MODELS, MUSIC_PROMPT, MUSIC_THERAPY
from attune_client.wire import text_inputs
from tests.conftest import SAMPLES
from tests.fake_server import FakeServer, steps

FRAMES = 105_600  # what a session promises
BUSY = ["abort", "INTERNAL", "server_busy: full; try again in 7 s"]


@pytest.fixture(scope="module")
def server():
    with FakeServer() as server:
        yield server


@pytest.fixture
def fresh():
    """One at which nothing has been counted."""
    with FakeServer() as server:
        yield server


def request(*what):
    return Request("a text", 2.0, text_inputs(steps(*what)))


def ask(url, model, *what, **options):
    async def asking():
        async with AsyncAttuneClient(url, **options) as client:
            return await ask_server(client, model, request(*what), clock())

    return asyncio.run(asking())


def attune(server, *arguments, **environment):
    runner = CliRunner()
    return runner.invoke(main, ["bench", *map(str, arguments)], env={"ATTUNE_URL": server.url} | environment)


# --- one request ---


def test_an_answer_has_its_times(server):
    sample = ask(server.url, MUSIC_PROMPT, ["sleep", 0.1], ["prompt"])
    assert sample.is_answered
    assert sample.planned_s <= sample.sent_s < sample.first_s == sample.ended_s
    assert sample.latency_s >= 0.1
    assert sample.audio_s == 2.0


def test_the_first_chunk_is_the_first_music_and_not_what_is_told_before(server):
    music = ["music", FRAMES // 2]
    sample = ask(server.url, MUSIC_THERAPY, ["session"], ["sleep", 0.1], music, ["sleep", 0.1], music)
    assert sample.is_answered
    assert sample.first_latency_s >= 0.1
    assert sample.ended_s - sample.first_s >= 0.09
    assert sample.stages_s == {"transcribe": 0.5, "recognise": 0.25, "prompt": 0.125}


@pytest.mark.parametrize(
    ("model", "what", "kind"),
    [
        (MUSIC_PROMPT, [BUSY], REFUSED),
        (MUSIC_THERAPY, [["session"], BUSY], REFUSED),
        (MUSIC_PROMPT, [["abort", "INTERNAL", "server_error: it failed"]], "server_error"),
        (MUSIC_PROMPT, [["abort", "UNAVAILABLE", "server_unavailable: starting"]], "server_unavailable"),
        (MUSIC_PROMPT, [["wait"]], "request_timeout"),
        (MUSIC_THERAPY, [["error", "no_speech: nothing was said"]], "no_speech"),
        (MUSIC_THERAPY, [["session"], ["music", FRAMES // 2]], "stream_ended_early"),
        (MUSIC_THERAPY, [["music", FRAMES]], "server_error"),
        (MUSIC_THERAPY, [], "server_error"),
    ],
)
def test_an_error_is_a_kind_and_no_time(server, model, what, kind):
    sample = ask(server.url, model, *what, timeout_s=0.5)
    assert sample.error == kind
    assert not sample.is_answered


def test_a_server_that_is_not_there_is_an_error_of_its_own():
    assert ask("127.0.0.1:1", MUSIC_PROMPT, ["prompt"], timeout_s=5).error == "server_unreachable"


# --- many ---


def drive(server, loop, *what, seconds=0.5):
    """The summary of a load of requests to `music_prompt`."""

    async def driving():
        async with AsyncAttuneClient(server.url) as client:
            send = partial(ask_server, client, MUSIC_PROMPT)
            await send(request(["prompt"]), clock())  # connects
            window = Window()
            load = asyncio.create_task(loop(send, in_random_order([request(*each) for each in what], 0), window))
            await window.open_after(0.0)
            await window.close_after(seconds)
            return summarise(await load, window, 1.0, streams=False)

    return asyncio.run(driving())


def test_errors_are_counted_beside_answers(server):
    what = [["prompt"]], [BUSY], [["abort", "INTERNAL", "server_error: it failed"]]
    summary = drive(server, lambda send, order, window: closed_loop(send, order, 2, window), *what)
    assert summary.refused > 0
    assert summary.failed == summary.errors["server_error"] > 0
    assert summary.requests == summary.total.count + summary.refused + summary.failed


def test_a_frozen_server_is_in_every_latency_that_was_due_meanwhile(fresh):
    """Stopped for a while: an open loop goes on to count, though nothing is answered."""

    def loop(send, order, window):
        async def both():
            opened = asyncio.create_task(open_loop(send, order, arrivals(50.0, seed=1), window))
            await asyncio.sleep(0.1)
            os.kill(fresh.pid, 19)  # SIGSTOP
            await asyncio.sleep(0.5)
            os.kill(fresh.pid, 18)  # SIGCONT
            return await opened

        return both()

    summary = drive(fresh, loop, [["prompt"]], seconds=0.7)
    due = sum(0.1 < at_s < 0.6 for at_s in itertools.takewhile(lambda at_s: at_s < 1, arrivals(50.0, seed=1)))
    assert due >= 15
    assert summary.requests == summary.total.count  # all were answered in the end
    assert summary.total.p90 >= 0.3
    assert summary.total.avg >= due * 0.2 / summary.requests


# --- what the server counts ---


def statistics(server):
    async def reading():
        async with TritonStatistics(server.url) as statistics:
            return await statistics.read()

    return asyncio.run(reading())


def test_the_difference_of_two_readings_is_what_happened_between(fresh):
    before = statistics(fresh)
    for _ in range(3):
        ask(fresh.url, MUSIC_PROMPT, ["prompt"])
    ask(fresh.url, MUSIC_PROMPT, ["abort", "INTERNAL", "server_error: it failed"])
    [stage] = differences(before, statistics(fresh))
    assert (stage.model, stage.requests, stage.failed, stage.batch) == ("music_prompt", 3, 1, 2.0)
    assert (stage.queue_ms, stage.input_ms, stage.compute_ms, stage.output_ms) == (1.0, 0.5, 8.0, 0.25)
    assert stage.total_ms == 10.0
    [more] = differences(statistics(fresh), statistics(fresh) | {"valence": Counts(1, 0, 1, 1, 0, 0, 0, 0, 0)})
    assert more.model == "valence"


def test_a_model_that_was_loaded_again_counts_from_there():
    before = {"valence": Counts(900, 3, 900, 900, 0, 0, 0, 0, 9 * 10**12)}
    after = {"valence": Counts(2, 0, 2, 1, 0, 0, 0, 0, 10**7)}
    [stage] = differences(before, after)
    assert (stage.requests, stage.total_ms, stage.batch) == (2, 5.0, 2.0)


def test_stages_are_in_the_pipelines_order():
    after = {name: Counts(1, 0, 1, 1, 0, 0, 0, 0, 0) for name in ("valence", "another", "speech_to_text")}
    assert [stage.model for stage in differences({}, after)] == ["speech_to_text", "valence", "another"]


def test_a_model_that_answers_in_a_thread_is_told_from_one_whose_times_are_its_own():
    after = {name: Counts(1, 0, 1, 1, 0, 0, 0, 0, 0) for name in MODELS}
    handed = {stage.model for stage in differences({}, after) if stage.is_handover}
    assert handed == {"speech_to_text", "music_prompt", "music_generator", "speech_emotion", "music_therapy"}


def test_statistics_of_no_server_are_an_error_of_ours():
    async def reading():
        async with TritonStatistics("127.0.0.1:1") as statistics:
            await statistics.read()

    with pytest.raises(errors.ServerUnreachable):
        asyncio.run(reading())


# --- processor time ---

SERVE = """
import subprocess, sys, time
server = subprocess.Popen(["bash", "-c", sys.argv[1]], start_new_session=True, stdout=subprocess.PIPE, text=True)
print(server.pid, flush=True)
until = time.process_time() + 0.2
while time.process_time() < until: pass
print(server.stdout.readline().strip(), flush=True)
sys.stdin.read()
server.kill()
server.wait()
"""
STUB = "exec -a /lib/triton_python_backend_stub bash {folder}/valence/1/model.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_is_by_process(tmp_path):
    """A guard that starts a server in a session of its own, which starts a stub."""
    (tmp_path / "valence/1").mkdir(parents=True)
    work = "for ((i = 0; i < 200000; i++)); do :; done; echo busy"
    rest = "while kill -0 $PPID 2> /dev/null; do sleep 0.05; done"  # until the server has ended
    (tmp_path / "valence/1/model.py").write_text(f"{work}\n{rest}\n")
    program = f"({STUB.format(folder=tmp_path)}) & wait"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline().strip() == "busy"
        spent_s = server_processor_s(pid)
    finally:
        process.communicate("")
    assert {"valence", SERVER, GUARD} <= set(spent_s) <= {"valence", SERVER, GUARD, "other"}  # sleep may be at work
    assert spent_s["valence"] > 0.05
    assert spent_s[GUARD] >= 0.2
    assert server_processor_s(pid) == {}  # it has ended


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_the_whole_session():
    """A server that has had 64 MiB for a moment, and its child, which has had 96."""
    take = "import sys; bytearray(int(sys.argv[1]) << 20); print('had', flush=True)"
    child = f"{take}; sys.stdin.read()"
    server = f"import subprocess; {take}; subprocess.run([sys.executable, '-c', {child!r}, '96'])"
    process = subprocess.Popen(
        [sys.executable, "-c", server, "64"],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["had", "had"]
        peak_mib = 1024 * peak_memory_gib(process.pid)
    finally:
        process.communicate("")
    assert 160 <= peak_mib < 256
    assert peak_memory_gib(process.pid) == 0  # it has ended


# --- recordings ---


def test_recordings_are_sent_as_they_are_and_samples_also_in_cuts():
    files = read_clips(SAMPLES)
    assert [clip.encoded for clip in files] == [path.read_bytes() for path in SAMPLES]
    clips = mixed_clips(SAMPLES)
    assert clips[: len(files)] == files
    cuts = clips[len(files) :]
    assert sorted(clip.seconds for clip in cuts) == sorted(CUTS_S * len(SAMPLES))
    for clip in clips:
        samples, rate = sf.read(io.BytesIO(clip.encoded))
        assert len(samples) / rate == pytest.approx(clip.seconds)
    first, _ = sf.read(io.BytesIO(cuts[0].encoded))
    whole, _ = sf.read(SAMPLES[0])
    np.testing.assert_allclose(first, whole[: len(first)], atol=1e-4)


def test_recordings_are_joined_to_any_length(tmp_path):
    short, long = clips_of_length(SAMPLES, (2.0, 60.0))
    assert (short.seconds, long.seconds) == (2.0, 60.0)
    samples, rate = sf.read(io.BytesIO(long.encoded))
    assert np.abs(samples[50 * rate :]).max() > 0.05  # speech to the end
    sf.write(tmp_path / "other.wav", np.zeros(100), 8000)
    with pytest.raises(errors.UnreadableFile, match="several sample rates"):
        clips_of_length([*SAMPLES, tmp_path / "other.wav"], (2.0,))


@pytest.mark.parametrize("read", [read_clips, mixed_clips, lambda paths: clips_of_length(paths, (2.0,))])
def test_what_is_no_recording_is_named(tmp_path, read):
    (tmp_path / "notes.wav").write_text("a text")
    for path in (tmp_path / "notes.wav", tmp_path / "missing.wav"):
        with pytest.raises(errors.UnreadableFile, match=path.name):
            read([path])


def test_recognition_is_asked_segment_by_segment_for_what_the_server_heard(server):
    async def making():
        async with AsyncAttuneClient(server.url) as client:
            clips = [Clip("one", 4.0, b"x"), Clip("two", 4.0, b"y")]
            return [await make_target(client, name, clips, music_s=7.0) for name in TARGETS]

    recognition, analysis, music = asyncio.run(making())
    assert [request.audio_s for request in recognition.requests] == [2.0, 1.5, 2.0, 1.5]
    assert recognition.requests[1].inputs["transcript"].tolist() == [[b"and on"]]
    assert {array.shape[0] for request in recognition.requests for array in request.inputs.values()} == {1}
    assert [(request.audio_s, request.inputs["audio"].item()) for request in analysis.requests] == [
        (4.0, b"x"),
        (4.0, b"y"),
    ]
    assert {(request.audio_s, float(request.inputs["duration_s"][0])) for request in music.requests} == {(7.0, 7.0)}


# --- the commands ---


def test_serving_tells_every_load_of_every_model(server, tmp_path):
    picture = tmp_path / "latency.png"
    result = attune(
        *(server, "serving", *SAMPLES, "--concurrency", "2", "--rate", "20", "--seconds", 1, "--warmup", 0.1),
        *("--plot", picture),
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert [(load["model"], load["load"]) for load in told["loads"]] == [
        (model, load) for model in TARGETS for load in ("2 at a time", "20/s at random")
    ]
    for load in told["loads"]:
        summary = load["summary"]
        assert summary["errors"] == {}
        assert summary["total"]["count"] == summary["requests"] > 0
        assert (summary["first"] is not None) == (load["model"] == "music_therapy")
        [stage] = load["stages"]
        assert (stage["model"], stage["total_ms"]) == (load["model"], 10.0)
        assert 0 < load["own_cores"] < 2
    assert set(told["clips"]) == {path.name for path in SAMPLES}
    assert "hardware: " in result.stdout
    assert "load generator: at most" in result.stdout
    assert "it says itself: transcribe 500 ms, recognise 250 ms, prompt 125 ms" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_is_one_line(server):
    options = ("--concurrency", "1", "--seconds", 0.1, "--warmup", 0, "--model", "speech_emotion")
    result = attune(server, "serving", *SAMPLES[:1], *options, "--json")
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    [load] = json.loads(line)["loads"]
    assert (load["model"], load["load"]) == ("speech_emotion", "1 at a time")


def test_a_rate_alone_makes_no_closed_loop(server):
    options = ("--rate", "30", "--seconds", 0.1, "--warmup", 0, "--model", "speech_emotion", "--json")
    result = attune(server, "serving", *SAMPLES[:1], *options)
    assert [load["load"] for load in json.loads(result.stdout)["loads"]] == ["30/s at random"]


@pytest.mark.parametrize(
    "options",
    [
        *(["--concurrency", "0"], ["--concurrency", "1,two"], ["--rate", "0"], ["--rate", "nan"], ["--seconds", "0"]),
        *(["--concurrency", "257"], ["--model", "valence"], ["--goodput-limit", "0"], ["--music-seconds", "0.5"]),
    ],
)
def test_a_load_that_cannot_be_is_refused_before_anything_is_sent(server, options):
    result = attune(server, "serving", *SAMPLES, *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr


@pytest.mark.parametrize("command", ["serving", "scaling"])
def test_without_recordings_it_says_that_there_are_none(server, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = attune(server, command)
    assert result.exit_code == 2
    assert "name recordings" in result.stderr


def test_a_plot_without_its_library_says_so_before_anything_is_measured(server, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "attune_client.bench.serving.plot", raising=False)
    begun_s = time.monotonic()
    result = attune(server, "serving", *SAMPLES, "--seconds", 600, "--plot", tmp_path / "latency.png")
    assert result.exit_code == 1
    assert "--plot needs matplotlib" in result.stderr
    assert "[train]" in result.stderr
    assert time.monotonic() - begun_s < 60


def test_a_server_that_is_not_there_is_told_in_one_line():
    result = CliRunner().invoke(main, ["bench", "serving", *map(str, SAMPLES)], env={"ATTUNE_URL": "127.0.0.1:1"})
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: no server answers at 127.0.0.1:1")


def test_scaling_tells_costs_of_lengths_and_batches(server):
    options = ("--lengths", "2,8", "--batches", "1,4", "--runs", 2)
    result = attune(server, "scaling", *SAMPLES, *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert [cost["size"] for cost in told["lengths"]] == [2.0, 8.0]
    assert [cost["size"] for cost in told["batches"]] == [1, 4]
    assert all(len(cost["times_s"]) == 2 for cost in told["lengths"] + told["batches"])
    assert "Time grows with the power" in result.stdout


def test_scaling_does_not_time_what_was_not_answered(fresh):
    async def asking():
        from attune_client.bench.serving.scaling import cost_of

        async with AsyncAttuneClient(fresh.url) as client:
            await cost_of(partial(ask_server, client, MUSIC_PROMPT), request(BUSY), 1.0, 1, None)

    with pytest.raises(errors.ServerError, match="was not answered: refused"):
        asyncio.run(asking())


# --- tables ---


def measured(**changes):
    counts = {
        "speech_emotion": Counts(4, 0, 4, 4, 1, 1, 1, 1, 1),
        "valence": Counts(4, 0, 8, 4, *5 * [4_000_000]),
    }
    fields = {
        "model": "speech_emotion",
        "load": AtATime(4),
        "summary": summarise([], Window(0.0, 0.0, 10.0), 1.0, streams=False),
        "stages": differences({}, counts),
        "server_processor_ms": {
            **{"speech_emotion": 2.0, "valence": 3.0},
            **{"guard": 1.0, "tritonserver": 0.5, "music_prompt": 0.25},
        },
        "own_cores": 0.1,
    }
    return Measured(**fields | changes)


def test_a_handover_is_not_shown_as_a_time():
    lines = stage_table(measured()).splitlines()
    [handed] = [line for line in lines if "speech_emotion" in line]
    assert handed == "| speech_emotion | 4 | 1.0 |  |  | handover |  |  | 2.00 |"
    [own] = [line for line in lines if "valence" in line]
    assert own == "| valence | 4 | 2.0 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 3.00 |"


def test_processor_time_adds_up():
    lines = stage_table(measured()).splitlines()
    assert lines[-2] == "| everything else |  |  |  |  |  |  |  | 0.25 |"
    assert lines[-1] == "| sum |  |  |  |  |  |  |  | 6.75 |"
    assert "sum" not in stage_table(measured(server_processor_ms={}))


def test_a_generator_that_was_too_busy_says_so():
    assert "too busy" not in generator_line([measured()])
    assert "too busy" in generator_line([measured(), measured(own_cores=0.9)])


def test_a_load_without_answers_has_a_row():
    row = throughput_table([measured(load=PerSecond(2.5))]).splitlines()[-1]
    assert row == "| speech_emotion | 2.5/s at random | 0 | 0.00 | 0.0 |  | 0.00 | 0 | 0 |"


def test_both_are_benchmarks_of_the_client():
    points = {point.name: point for point in entry_points(group="attune.benchmarks")}
    assert {points[name].extras[0] for name in ("serving", "scaling")} == {"client"}
