"""The harness of `attune chaos`, tried on servers that lose calls, hang and leave things behind:
`pytest tests/unit/test_chaos.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner

from attune_client.client import AttuneClient
from attune_client.protocol.errors import (
    InvalidOption,
    RequestTimeout,
    ServerBusy,
    ServerError,
    StreamEndedEarly,
)
from attune_ensemble.chaos.catalogue import MODULES, ROWS
from attune_ensemble.chaos.commands import chaos, choose
from attune_ensemble.chaos.harness.calls import Ended, Outcome, Play, Prompt, attempt, judge
from attune_ensemble.chaos.harness.case import Case, Row, Settings, Skipped, Workshop
from attune_ensemble.chaos.harness.processes import Footprint, find_stubs, footprint, tree
from attune_ensemble.chaos.harness.report import details, json_line, table_line
from attune_ensemble.chaos.harness.run import Result, run
from attune_ensemble.chaos.harness.served import DidNotStart, Options, Served
from attune_ensemble.chaos.harness.threads import Load
from attune_ensemble.chaos.rows.admission import check_refusals, throughput
from attune_ensemble.chaos.rows.deaths import told_late
from attune_ensemble.chaos.rows.lasting import compare
from attune_ensemble.serving.guard.failures import error_from_text
from tests.conftest import ROOT
from tests.fake_serve import FAULTS, FakeFrontDoor, answer

FAKE = ROOT / "tests" / "fake_serve.py"
PATIENCE_S = 1.5


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    monkeypatch.setattr("attune_ensemble.chaos.harness.case.GONE_S", 2.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def workshop(tmp_path):
    """Of servers with one fault each: `workshop(fault)`."""
    recording, made = tmp_path / "speech.wav", []
    sf.write(recording, np.zeros(16_000), 16_000)

    def make(fault: str, **changes) -> Workshop:
        options = Options(tmp_path, tmp_path / "server.log", command=(sys.executable, str(FAKE), fault))
        made.append(Workshop(Settings(tmp_path, recording, tmp_path / "logs", options=options, **changes)))
        return made[-1]

    yield make
    for each in made:
        each.drop()


def outcome_of(work, workshop: Workshop, limit_s: float = 60.0) -> Result:
    return run(Row("row", "what", work, limit_s), workshop)


def ask_everything(case: Case) -> None:
    server = case.fresh_server()
    case.ask(server, Prompt(), PATIENCE_S)
    case.at_once(server, [Play(), Play()], PATIENCE_S)


# How calls end


@pytest.mark.parametrize(
    ("fault", "answered", "errors", "lost", "hung"),
    [
        ("none", 3, 0, 0, 0),
        ("hangs", 0, 0, 0, 3),
        ("loses", 1, 0, 2, 0),
        ("inside", 0, 0, 3, 0),
        ("plain", 0, 3, 0, 0),
        ("dies", 0, 3, 0, 0),
    ],
)
def test_each_way_in_which_calls_end_is_told_from_the_others(workshop, fault, answered, errors, lost, hung):
    result = outcome_of(ask_everything, workshop(fault))
    assert (result.answered, result.errors, result.lost, result.hung) == (answered, errors, lost, hung), result.failures
    assert result.requests == 3
    assert result.passed == (lost == hung == 0 and fault != "dies"), "one that dies leaves its folder"


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidOption("duration_s must be 1 to 600"), Outcome.ERROR),
        (ServerBusy("16 requests", 3), Outcome.ERROR),
        (RequestTimeout("the deadline passed before valence was done"), Outcome.ERROR),
        (RequestTimeout("nothing came for 30 s"), Outcome.HUNG),
        (RequestTimeout("the deadline of 5 s passed, and nothing came"), Outcome.HUNG),
        (RequestTimeout("Deadline Exceeded"), Outcome.HUNG),
        (raised(StreamEndedEarly("3 of 5 s"), StopIteration()), Outcome.LOST),
        (raised(StreamEndedEarly("3 of 5 s"), StreamEndedEarly("the model died")), Outcome.ERROR),
        (ServerError("Stub process 'valence_0_0' is not healthy."), Outcome.LOST),
        (ServerError("Failed to increase the shared memory pool size for key 'region_1'"), Outcome.LOST),
        (ServerError("cannot open /dev/full"), Outcome.LOST),
        (error_from_text("Failed to increase the shared memory pool size", "valence", lost=True), Outcome.ERROR),
        (ServerError("valence failed; see the server's log"), Outcome.ERROR),
        (KeyError("music"), Outcome.LOST),
    ],
)
def test_an_error_is_judged_by_what_its_caller_can_know(error, outcome):
    assert judge(error) == outcome


def test_a_call_that_does_not_come_back_is_hung():
    class Stuck:
        name = "stuck"

        def __call__(self, client, heard):
            time.sleep(60)

    ended = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attune_ensemble.chaos.harness.threads.MARGIN_S", 0.1)
        with AttuneClient("127.0.0.1:1", timeout_s=0.1) as client, Load([Stuck()], client, 0.1, ended.append, 1):
            time.sleep(0.05)
    assert [one.outcome for one in ended] == [Outcome.HUNG]


def test_a_slow_listener_is_not_silent():
    def music(model, inputs):
        yield from answer("none", model)

    triton = FakeFrontDoor(music)
    with AttuneClient(triton.url, timeout_s=0.5) as client:
        ended = attempt(Play(pause_s=0.7), client)
    triton.stop()
    assert ended.outcome == Outcome.ANSWERED


# What rows find


def test_a_process_and_a_file_that_stay_are_found(workshop):
    for fault, word in (("stays", "process"), ("forgets", "temporary")):
        result = outcome_of(lambda case: case.fresh_server() and None, workshop(fault))
        assert not result.passed
        assert len(result.left) == 1
        assert word in result.left[0]
        pids = [int(text.split()[1]) for text in result.left if text.startswith("process")]
        assert not any(Path(f"/proc/{pid}").exists() and tree(pid)[0].status() != "zombie" for pid in pids), "swept"


def test_a_server_that_is_well_leaves_nothing(workshop):
    assert outcome_of(lambda case: case.fresh_server() and None, workshop("none")).passed


def test_a_row_that_hangs_has_failed_at_its_limit_and_the_next_runs(workshop):
    shop, begun_s = workshop("none"), time.monotonic()

    def hang(case):
        case.server()
        time.sleep(60)

    result = outcome_of(hang, shop, limit_s=8.0)
    assert time.monotonic() - begun_s < 30
    assert not result.passed
    assert "limit" in result.failures[0]
    assert outcome_of(lambda case: case.ask(case.server(), Prompt()) and None, shop).passed


def test_the_shared_server_must_serve_when_the_row_is_over(workshop, monkeypatch):
    monkeypatch.setattr("attune_ensemble.chaos.harness.run._AFTERWARDS_S", 1.0)
    result = outcome_of(lambda case: case.server() and None, workshop("plain"))
    assert not result.passed
    assert "afterwards" in result.failures[0]


def test_a_process_that_ends_meanwhile_is_noticed(workshop):
    def kill(case):
        server = case.fresh_server()
        with case.unchanged(server):
            server.kill_supervisor()
            server.process.wait()

    assert any("ended: supervisor" in failure for failure in outcome_of(kill, workshop("none")).failures)


def test_what_does_not_recover_fails(workshop):
    def wait(case):
        case.recovers(case.fresh_server(), Prompt(), within_s=0.5)

    result = outcome_of(wait, workshop("plain"))
    assert not result.passed
    assert result.recovery_s is None
    assert outcome_of(wait, workshop("none")).recovery_s < 5


def test_a_server_that_does_not_start_is_told_with_what_it_said(workshop):
    shop = workshop("none")
    options = replace(shop.settings.options, command=(sys.executable, "-c", "import sys; sys.exit('no port')"))
    served = Served(options)
    with pytest.raises(DidNotStart, match=r"exit status 1.*no port"):
        served.start()
    served.remove()


def test_one_that_does_not_end_in_order_is_ended_by_force(workshop, monkeypatch):
    monkeypatch.setattr(Served.terminate, "__defaults__", (1.0,))
    served = Served(workshop("deaf").options("row")).start()
    assert served.terminate() is None
    served.remove()
    assert not served.processes()


def test_a_row_that_cannot_be_tried_is_neither_failed_nor_silent(workshop):
    def skip(case):
        raise Skipped("only root may mount")

    result = outcome_of(skip, workshop("none"))
    assert result.passed
    assert "skipped: only root" in table_line(result)


def test_who_interrupts_it_ends_its_servers(workshop):
    shop, started = workshop("none"), []

    def hang(case):
        started.append(case.fresh_server())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        outcome_of(hang, shop)
    assert not started[0].is_running
    assert not started[0].folder.exists()


def test_a_fault_of_a_row_is_a_failure(workshop):
    result = outcome_of(lambda case: {}["missing"], workshop("none"))
    assert result.failures == ("'missing'",) or "missing" in result.failures[0]
    assert not result.passed


def test_a_swarm_has_connections_of_its_own_and_may_vanish():
    def music(model, inputs):
        first, *rest = answer("none", model)
        yield first
        for _ in range(100):
            yield rest[0]
            time.sleep(0.05)

    triton = FakeFrontDoor(music)
    try:
        workshop_free = Case.swarm  # the method alone: no server is started here
        ended = []

        class Here:
            url = triton.url

        class CaseOfOne:
            class tally:  # noqa: N801
                add = ended.append

        with workshop_free(CaseOfOne(), Here(), [[Play(seconds=600)] * 2] * 3, 20.0) as swarm:
            assert swarm.wait_until_heard(6, within_s=60) == 6
            swarm.kill()
        assert len(triton.peers) >= 3
        until_s = time.monotonic() + 10
        while len(triton.ended) < 6 and time.monotonic() < until_s:
            time.sleep(0.05)
        assert triton.ended == [True] * 6, "each stream was cancelled"
        with workshop_free(CaseOfOne(), Here(), [[Play(chunks=2)]] * 2, 20.0) as swarm:
            assert [one.outcome for one in swarm.wait(within_s=60)] == [Outcome.ANSWERED] * 2
        assert len(ended) == 2
    finally:
        triton.stop()


# Single checks that must be able to fail


def refused(seconds: float, retry_after_s: int | None) -> Ended:
    return Ended("analyse", Outcome.ERROR, 0.0, seconds, "ServerBusy", "full", retry_after_s)


@pytest.mark.parametrize(("seconds", "retry_after_s", "failures"), [(0.2, 3, 0), (4.0, 3, 1), (0.2, None, 1)])
def test_a_refusal_comes_at_once_and_says_when_to_come_back(workshop, seconds, retry_after_s, failures):
    case = Case(Row("row", "what", lambda case: None, 1.0), workshop("none"))
    check_refusals(case, [refused(seconds, retry_after_s)])
    assert len(case.failures) == failures


@pytest.mark.parametrize(
    ("after", "failures"),
    [
        (Footprint(1050, 105, 100, 12), 0),
        (Footprint(1200, 100, 100, 12), 1),
        (Footprint(1000, 140, 100, 12), 1),
        (Footprint(1000, 100, 140, 12), 1),
        (Footprint(1000, 100, 100, 11), 1),
    ],
)
def test_growth_is_found(workshop, after, failures):
    case = Case(Row("row", "what", lambda case: None, 1.0), workshop("none"))
    compare(case, Footprint(1000, 100, 100, 12), after, "told")
    assert len(case.failures) == failures


def test_who_was_told_late_is_found():
    early = Ended("play", Outcome.ERROR, 9.0, 1.5)
    late = Ended("play", Outcome.ERROR, 9.0, 4.0)
    later = Ended("play", Outcome.ERROR, 10.5, 4.0)
    answered = Ended("play", Outcome.ANSWERED, 9.0, 4.0)
    assert told_late([early, late, later, answered], killed_s=10.0, within_s=2.0) == [late]


def test_goodput_counts_what_was_answered_in_time():
    ended = [Ended("a", Outcome.ANSWERED, 10.0, seconds) for seconds in (0.5, 1.5, 2.5)]
    assert throughput([*ended, refused(0.1, 1)], from_s=11.0, seconds=2.0) == 1.0


HOLDS_MEMORY = f"""
import mmap, sys
held = mmap.mmap(-1, {64 * 2**20})
print("empty", flush=True)
sys.stdin.readline()
held.write(b"x" * len(held))
print("full", flush=True)
sys.stdin.readline()
"""


def test_memory_of_processes_is_measured():
    """Measured on a process that does nothing else: the tests' own memory grows and shrinks as they run."""
    command = [sys.executable, "-c", HOLDS_MEMORY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "empty\n"
        before = footprint(tree(child.pid))
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "full\n"
        after = footprint(tree(child.pid))
        child.communicate("\n", timeout=30)
    assert 60 < after.memory_mib - before.memory_mib < 68
    assert after.handles > 0
    assert after.processes == 1


def test_stubs_are_found_by_the_models_folder():
    class Process:
        def __init__(self, *command):
            self.cmdline = lambda: list(command)

    stub = "/tmp/x/backends/python/triton_python_backend_stub"
    found = find_stubs(
        [
            Process(stub, "/srv/model_repository/valence/1/model.onnx", "prefix", "4194304"),
            Process(stub, "/srv/model_repository/speech_to_text/1/model.py", "prefix"),
            Process("/bin/cat", "/srv/model_repository/music_prompt/1/model.py"),
            Process(),
        ]
    )
    assert set(found) == {"valence", "speech_to_text"}


# The command


def test_every_module_of_rows_is_run():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    folder = ROOT / "ensemble/attune_ensemble/chaos/rows"
    assert {module.__name__.rpartition(".")[2] for module in MODULES} == {
        file.stem for file in folder.glob("*.py") if file.stem != "__init__"
    }
    for row in ROWS:
        assert row.limit_s > 0
        assert row.what


def test_rows_are_chosen():
    assert [row.name for row in choose(["soak"], quick=False)] == ["soak"]
    assert "soak" not in [row.name for row in choose([], quick=False)]
    quick = choose([], quick=True)
    assert 4 <= len(quick) < len(choose([], quick=False))
    assert all(row.quick_limit_s is not None for row in quick)


def test_the_list_runs_nothing():
    told = CliRunner().invoke(chaos, ["--list"])
    assert told.exit_code == 0
    assert len(told.output.splitlines()) == len(ROWS)
    assert CliRunner().invoke(chaos, ["--only", "nonsense"]).exit_code == 2


def test_the_report_is_one_table_and_one_line_of_json():
    good = Result("a", "what", 3, 2, 1, 0, 0, 1.25, (), True, 4.0, notes=("remark",))
    bad = replace(good, row="b", lost=1, left=("process 7",), passed=False, failures=("lost",))
    assert table_line(good) == "| a | what | 3 | 2 | 1 | 0 | 0 | 1.2 | nothing | 4 | yes |"
    assert table_line(bad).endswith("| 1 | 4 | NO |")
    assert details(bad) == ["b: failed: lost", "b: left behind: process 7", "b: remark"]
    told = json.loads(json_line([good, bad], "two cores"))
    assert told["passed"] is False
    assert [row["row"] for row in told["rows"]] == ["a", "b"]
    assert json.loads(json_line([good], ""))["passed"] is True


def test_every_fault_of_the_fake_is_used():
    source = "".join(Path(__file__).with_name(name).read_text() for name in ("test_chaos.py", "test_chaos_ending.py"))
    assert all(f'"{fault}"' in source for fault in FAULTS)
