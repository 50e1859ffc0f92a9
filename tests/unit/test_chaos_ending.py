"""However `attune chaos` is ended, nothing goes on that it has started: `pytest tests/unit/test_chaos_ending.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attune_ensemble.serving.launcher.processes import process_of, state_of
from tests.conftest import ROOT

FAKE = ROOT / "tests" / "fake_serve.py"
WITHIN_S = 20.0
INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

# The command as it is, but for one row, and a server that does what `tests.fake_serve` says.
PROGRAM = """
import json, sys, time
from functools import partial
from pathlib import Path
from attune_client import __main__
from attune_ensemble.chaos import commands
from attune_ensemble.chaos.harness.case import Row, Settings
from attune_ensemble.chaos.harness.served import Options

fault, folder = sys.argv[1], Path(sys.argv[2])
options = Options(folder, folder / "server.log", command=(sys.executable, sys.argv[3], fault))

def tell(*servers):
    told = [{"pids": [each.pid for each in server.processes()], "folder": str(server.folder)} for server in servers]
    (folder / "told.new").write_text(json.dumps(told))
    (folder / "told.new").rename(folder / "told")

def work(case):
    own = case.fresh_server(start=False)
    if fault == "mute":
        own.launch()
        time.sleep(1)
        tell(own)
        own.wait_for("ready", 600)
    own.start()
    tell(own, case.server())
    try:
        case.pause(600)
    finally:
        (folder / "tidied").touch()

commands.choose = lambda *names, quick: [Row("row", "waits", work, 600.0)]
commands.Settings = partial(Settings, options=options)
sys.argv = ["attune", "chaos", "--repository", str(folder), "--audio", sys.argv[3], "--logs", str(folder / "logs")]
__main__.main()
"""


@pytest.fixture
def chaos(tmp_path):
    """Start it, and return its process, the processes of its servers, and their folders."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").touch()
    started = []

    def start(fault: str):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", PROGRAM, fault, str(tmp_path), str(FAKE)]
        # A session of its own: the signals are for it alone, and no test may end another.
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        process = subprocess.Popen(command, env=environment, **pipes)
        wait_until((tmp_path / "told").exists, 60.0, process)
        told = json.loads((tmp_path / "told").read_text())
        servers = [process_of(pid) for each in told for pid in each["pids"]]
        started.append((process, servers))
        assert len(servers) == len(told) * (2 if fault == "stays" else 1)
        return process, servers, [Path(each["folder"]) for each in told]

    yield start
    for process, servers in started:
        process.kill()
        process.wait()
        process.stdout.close()
        for server in servers:
            if not state_of(server).has_ended:
                os.kill(server.pid, signal.SIGKILL)


def wait_until(condition, within_s, process=None):
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def everything_is_gone(servers, folders):
    return all(state_of(server).has_ended for server in servers) and not any(folder.exists() for folder in folders)


ENDINGS = [(INT,), (INT,) * 2, (INT,) * 3, (TERM,), (TERM,) * 2, (HUP,), (HUP, TERM, INT), (KILL,)]
CASES = [("none", numbers) for numbers in ENDINGS]
CASES += [(fault, numbers) for fault in ("stays", "deaf", "mute") for numbers in ((INT,) * 2, (KILL,))]


@pytest.mark.parametrize(("fault", "numbers"), CASES, ids=str)
def test_however_it_is_ended_its_servers_are_ended(chaos, tmp_path, fault, numbers):
    """`timeout` sends its signal twice, and an impatient person more often."""
    process, servers, folders = chaos(fault)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.002)
    told = process.communicate(timeout=WITHIN_S)[0]
    wait_until(lambda: everything_is_gone(servers, folders), WITHIN_S)
    if numbers != (KILL,):
        assert process.returncode == 128 + numbers[0], told
        assert told.count("interrupted") == 1
        assert "Traceback" not in told
        assert (tmp_path / "tidied").exists() or fault == "mute", "what a row has mounted has to be given back"


@pytest.mark.parametrize("pause_s", [0.1, 0.5])
def test_a_signal_while_it_ends_does_not_hold_it_up(chaos, pause_s):
    process, servers, folders = chaos("deaf")
    for _ in range(8):
        process.send_signal(INT)
        time.sleep(pause_s)
    process.communicate(timeout=WITHIN_S)
    wait_until(lambda: everything_is_gone(servers, folders), WITHIN_S)
    assert process.returncode == 128 + INT
