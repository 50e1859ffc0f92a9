"""What the server costs, on toy models and a server that does as it is told.

pytest tests/unit/test_server_cost.py
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from attune_client.bench.serving.asking import REFUSED, Sample, clock
from attune_client.bench.serving.measuring import Plan, Reading
from attune_client.bench.serving.options import MAX_CONCURRENCY
from attune_client.bench.serving.statistics import Counts, differences
from attune_client.bench.serving.targets import Request, Target
from attune_client.cli import main
from attune_client.protocol import errors
from attune_client.protocol.models import EMOTION_RECOGNITION, SPEECH_EMOTION
from attune_ensemble.cost import command, instances
from attune_ensemble.cost.asking import LocalAsk
from attune_ensemble.cost.full import Figures, Row, Side, best_ratio, full_table, own_processor, take_rounds
from attune_ensemble.cost.idle import Pair, Step, Turns, processor_table, split_table, take_turns, time_steps
from attune_ensemble.serving.configuration import read_config
from attune_ensemble.serving.guard.settings import GuardSettings
from tests.conftest import ROOT, SAMPLES
from tests.fake_server import USUAL, FakeServer

REQUESTS = tuple(Request(f"clip {number}", 2.0, {"number": np.array([number])}) for number in range(3))


class Models:
    """Models that answer like the fake server, after `seconds`, or raise what is put in `error`."""

    def __init__(self, seconds=0.0, error=None) -> None:
        self.asked: list[str] = []
        self._seconds, self._error = seconds, error

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def call(self, name, inputs, /, *, context=None):
        self.asked.append(name)
        time.sleep(self._seconds)
        if self._error is not None:
            raise self._error
        [answer] = USUAL[name]
        return answer


def ask_once(models, model=SPEECH_EMOTION):
    with LocalAsk(models, model, threads=1) as ask:
        return asyncio.run(ask(REQUESTS[0], clock()))


def test_a_request_to_models_here_is_timed_as_one_to_a_server():
    sample = ask_once(Models(seconds=0.05))
    assert sample.is_answered
    assert sample.latency_s >= 0.05
    assert sample.first_s == sample.ended_s
    assert sample.stages_s == {"transcribe": 0.5, "recognise": 0.25}
    assert ask_once(Models(error=errors.ServerBusy("full"))).error == "server_busy"


def test_as_many_requests_are_at_work_as_there_are_threads():
    models = Models(seconds=0.2)

    async def asking(ask):
        await asyncio.gather(*(ask(request, clock()) for request in REQUESTS))

    begun_s = time.monotonic()
    with LocalAsk(models, SPEECH_EMOTION, threads=3) as ask:
        asyncio.run(asking(ask))
    assert 0.2 <= time.monotonic() - begun_s < 0.55


# --- one at a time ---


class Side1:
    """Takes so long, and puts down what it was asked."""

    def __init__(self, name, log, seconds, error="") -> None:
        self.name, self.log, self.seconds, self.error = name, log, seconds, error

    async def __call__(self, request, planned_s):
        self.log.append((self.name, request.name))
        return Sample(planned_s, planned_s, planned_s, planned_s + self.seconds, 2.0, self.error)


def turn(local, served, rounds=1, spent=lambda: {}):
    return asyncio.run(take_turns(local, served, REQUESTS, rounds, spent, rest_s=0.2))


def test_both_are_asked_in_turn_and_each_is_the_first_as_often():
    log: list[tuple[str, str]] = []
    turns = turn(Side1("local", log, 0.1), Side1("served", log, 0.104), rounds=2)
    assert len(turns.pairs) == 2 * len(REQUESTS)
    assert turns.added_ms == pytest.approx(4.0)
    firsts = [name for name, _ in log[::2]]
    assert firsts == ["served"] * 3 + ["local"] * 3 + ["served"] * 3
    assert [request for _, request in log[::2]] == [request for _, request in log[1::2]]


def test_what_is_not_answered_is_not_compared():
    log: list[tuple[str, str]] = []
    with pytest.raises(errors.ServerError, match="clip 0 was not answered: refused"):
        turn(Side1("local", log, 0.1), Side1("served", log, 0.1, REFUSED))


def test_one_slow_request_does_not_change_what_is_added():
    turns = Turns([Pair(0.1, 0.105), Pair(0.1, 0.105), Pair(0.1, 3.0)], 100.0, {}, {})
    assert turns.added_ms == pytest.approx(5.0)


def test_processor_time_is_of_the_side_that_was_asked_less_that_of_a_server_at_rest():
    """A server whose model takes 30 ms of a request, and whose guard takes a tenth of its core whatever happens."""
    work = {"valence": 0.0}

    def spent():
        return work | {"guard": 0.1 * clock()}

    async def local(request, planned_s):
        until_s = time.process_time() + 0.02
        while time.process_time() < until_s:
            pass
        return Sample(planned_s, planned_s, clock(), clock(), 2.0)

    async def served(request, planned_s):
        work["valence"] += 0.03
        await asyncio.sleep(0.05)
        return Sample(planned_s, planned_s, clock(), clock(), 2.0)

    turns = turn(local, served, rounds=2, spent=spent)
    assert 20 <= turns.local_ms < 40
    assert turns.served_ms["valence"] == pytest.approx(30.0)
    assert abs(turns.served_ms["guard"]) < 2
    assert turns.background_ms["guard"] == pytest.approx(100.0, rel=0.3)
    lines = processor_table(turns, [Step("valence", 5.0, 4.0)]).splitlines()
    assert lines[2] == "| valence | 4.00 | 30.00 | 0.00 |"
    assert lines[-1].startswith(f"| sum | {turns.local_ms:.2f} | ")


def test_every_step_of_the_ensemble_is_timed():
    """By the committed configuration, with steps whose outputs are what the next ones take."""
    config = read_config(ROOT / "model_repository" / EMOTION_RECOGNITION.name)
    outputs = {step.model_name: list(step.output_map) for step in config.ensemble_scheduling.step}

    def call(name, inputs, /, *, context):
        time.sleep(0.02 if name == "valence" else 0.0)
        return {output: np.zeros(1) for output in outputs[name]}

    inputs = {tensor.name: np.zeros(1) for tensor in EMOTION_RECOGNITION.inputs}
    steps = {
        step.model: step for step in time_steps(call, ROOT / "model_repository", [Request("one", 2.0, inputs)] * 2)
    }
    assert set(steps) == set(outputs)
    assert steps["valence"].ms >= 20 > steps["valence"].processor_ms


def test_steps_stand_beside_what_the_server_counts():
    stages = differences({}, {"valence": Counts(2, 0, 2, 2, 2_000_000, 1_000_000, 8_000_000, 500_000, 12_000_000)})
    lines = split_table([Step("text_tokenizer", 1.0, 1.0), Step("valence", 4.5, 4.5)], stages).splitlines()
    assert lines[2] == "| text_tokenizer | 1.00 |  |  |  |  |  |  |"
    assert lines[3] == "| valence | 4.50 | 1.00 | 0.50 | 4.00 | 0.25 | 6.00 | 1.50 |"


# --- as many as they can do ---


def test_both_are_put_under_each_load_in_rounds():
    async def served_processor():
        return Reading(processor_s={"valence": time.process_time()})

    order: list[str] = []

    async def ask(name, seconds, request, planned_s):
        order.append(name)
        await asyncio.sleep(seconds)
        return Sample(planned_s, planned_s, clock(), clock(), 2.0)

    local = Side(partial(ask, "local", 0.01), own_processor)
    served = Side(partial(ask, "served", 0.03), served_processor)
    target = Target(EMOTION_RECOGNITION, REQUESTS)
    rows = asyncio.run(take_rounds(local, served, target, (1, 2), Plan(0.2, 0.0), rounds=2))
    assert [row.concurrency for row in rows] == [1, 2]
    changes = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert changes == ["local", "served"] * 4
    for row in rows:
        assert row.served.p50_s >= 0.03 > 0
        assert row.local.answers_per_s > row.served.answers_per_s
    assert best_ratio(rows) < 1


def test_the_best_of_each_is_compared():
    rows = [
        Row(1, Figures(10.0, 0.1, 100.0), Figures(8.0, 0.125, 120.0)),
        Row(4, Figures(20.0, 0.2, 100.0), Figures(19.0, 0.21, 110.0)),
        Row(8, Figures(18.0, 0.4, 100.0), Figures(19.5, 0.41, 110.0)),
    ]
    assert best_ratio(rows) == pytest.approx(19.5 / 20)
    assert full_table(rows).splitlines()[2] == "| 1 | 10.00 | 100.0 | 100.0 | 8.00 | 125.0 | 120.0 | 0.80x | 1.20x |"


def test_a_side_that_answers_nothing_is_an_error():
    async def ask(request, planned_s):
        await asyncio.sleep(0.01)
        return Sample(planned_s, planned_s, clock(), clock(), 2.0, REFUSED)

    side = Side(ask, own_processor)
    with pytest.raises(errors.ServerError, match=r"no answers, .*refused"):
        asyncio.run(take_rounds(side, side, Target(EMOTION_RECOGNITION, REQUESTS), (1,), Plan(0.1, 0.0), rounds=1))


@pytest.mark.parametrize("model", [EMOTION_RECOGNITION, SPEECH_EMOTION])
def test_the_command_compares_a_server_with_models_here(monkeypatch, model):
    models = Models()
    monkeypatch.setattr(command, "LocalModels", lambda repository: models)
    monkeypatch.setattr(command, "time_steps", lambda call, repository, requests: [Step("valence", 1.0, 1.0)])
    options = ("--seconds", 0.2, "--warmup", 0.05, "--rounds", 1, "--concurrency", "1,2", "--model", model.name)
    with FakeServer() as server:
        arguments = ["bench", "server-cost", *map(str, (*SAMPLES, *options))]
        result = CliRunner().invoke(main, arguments, env={"ATTUNE_URL": server.url})
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["model"] == model.name
    assert [row["concurrency"] for row in told["rows"]] == [1, 2]
    assert set(models.asked) == {model.name}
    assert [stage["model"] for stage in told["stages"]] == [model.name]
    assert bool(told["steps"]) == (model is EMOTION_RECOGNITION)
    assert "the server adds" in result.stdout
    assert "of the best in one process" in result.stdout


# --- other settings ---


def test_a_repository_is_the_same_but_for_one_setting():
    repository = ROOT / "model_repository"
    with instances.set_otherwise(repository, "emotion_encoder", 3, 2) as folder:
        assert {path.name for path in folder.iterdir()} == {path.name for path in repository.iterdir()}
        before, after = (read_config(place / "emotion_encoder") for place in (repository, folder))
        assert after.instance_group[0].count == 3
        assert after.parameters["intra_op_thread_count"].string_value == "2"
        after.instance_group[0].count = before.instance_group[0].count
        after.parameters["intra_op_thread_count"].string_value = "1"
        assert after == before
        assert (folder / "valence").resolve() == (repository / "valence").resolve()
        assert (folder / "emotion_encoder" / "1").resolve() == (repository / "emotion_encoder" / "1").resolve()
    assert not folder.exists()
    assert read_config(repository / "emotion_encoder") == before


LOAD = {
    "load": "2 at a time",
    "summary": {"answers_per_s": 4.0, "total": {"p50": 0.5, "p99": 0.75}},
    "server_processor_ms": {"valence": 30.0, "guard": 2.0},
}


def test_each_setting_is_served_and_put_under_load(monkeypatch):
    commands = []

    def run(arguments, **options):
        commands.append(arguments)
        repository = Path(arguments[arguments.index("--repository") + 1])
        count = read_config(repository / "emotion_encoder").instance_group[0].count
        load = LOAD | {"summary": LOAD["summary"] | {"answers_per_s": 4.0 * count}}
        return subprocess.CompletedProcess(arguments, 0, stdout=f"{json.dumps({'loads': [load]})}\n", stderr="")

    monkeypatch.setattr(instances.subprocess, "run", run)
    options = ["--instances", "1,2", "--concurrency", "2", "--seconds", "3", "--repository", "model_repository"]
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["bench", "instances", *options])
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout.splitlines()[-1])["settings"]
    assert [(each["instances"], each["answers_per_s"], each["processor_ms"]) for each in settings] == [
        (1, 4.0, 32.0),
        (2, 8.0, 32.0),
    ]
    assert "| 2 | 1 | 2 at a time | 8.00 | 2.00x | 500 | 750 | 32 |" in result.stdout
    for arguments in commands:
        bench = arguments[arguments.index("--") :]
        assert bench[-4:] == ["--concurrency", "2", "--seconds", "3"]
        assert "--log-file" in arguments[: arguments.index("--")]


@pytest.mark.parametrize(
    "options", [["--concurrency", "1,two"], ["--concurrency", "0"], ["--concurrency", "257"], ["--threads", "0"]]
)
def test_a_load_that_cannot_be_is_refused_before_a_server_starts(monkeypatch, options):
    started = []
    monkeypatch.setattr(instances.subprocess, "run", lambda *arguments, **more: started.append(arguments))
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["bench", "instances", *options])
    assert result.exit_code == 2, result.output
    assert options[0] in result.stderr
    assert not started


def test_a_load_has_no_more_in_flight_than_a_connection_carries():
    assert GuardSettings().connection_calls == MAX_CONCURRENCY


def test_without_options_the_loads_are_those_that_the_help_names(monkeypatch):
    commands = []

    def run(arguments, **options):
        commands.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, stdout=f"{json.dumps({'loads': [LOAD]})}\n", stderr="")

    monkeypatch.setattr(instances.subprocess, "run", run)
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["bench", "instances", "--json"])
    assert result.exit_code == 0, result.output
    [loads] = {arguments[arguments.index("--concurrency") + 1] for arguments in commands}
    settings = json.loads(result.stdout)["settings"]
    told = CliRunner().invoke(main, ["bench", "instances", "--help"]).stdout
    for name in ("instances", "threads"):
        values = ",".join(str(value) for value in sorted({each[name] for each in settings}))
        assert f"[default: {values}]" in told
    assert f"[default: {loads}]" in told


def test_a_server_that_does_not_start_is_told(monkeypatch):
    failed = subprocess.CompletedProcess([], 78, stdout="", stderr="Error: the model repository is not right\n")
    monkeypatch.setattr(instances.subprocess, "run", lambda *arguments, **options: failed)
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["bench", "instances"])
    assert result.exit_code == 1
    assert "the model repository is not right" in result.stderr
