"""What ends and removes what somebody has left: `pytest tests/unit/test_janitor.py`."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attune_ensemble.janitor import Janitor, cleaning

VARIABLE = "ATTUNE_TEST"

MARKED = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""
# With what it starts itself, whose janitor has a folder to remove.
NESTED = """
import sys, time
from pathlib import Path
from attune_ensemble.janitor import Janitor
janitor = Janitor("ATTUNE_INNER", sys.argv[1], Path(sys.argv[1]))
print(janitor.pid, flush=True)
time.sleep(60)
"""
COUNTING = """
import signal, sys, time
def count(number, frame):
    with open(sys.argv[1], "a") as file:
        file.write("x")
signal.signal(signal.SIGTERM, count)
print("up", flush=True)
time.sleep(60)
"""
OWNER = """
import sys, time
from pathlib import Path
from attune_ensemble.janitor import Janitor
janitor = Janitor("ATTUNE_TEST", sys.argv[1], Path(sys.argv[2]))
print(janitor.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def value():
    return secrets.token_hex(8)


@pytest.fixture
def start():
    """Start a program, with variables of its environment, and return when it has said a line, with that line."""
    started = []

    def run(program, *arguments, **variables):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def left(tmp_path):
    """A folder with a file in it, and shared memory that is named after it."""
    folder = tmp_path / f"attune-{secrets.token_hex(8)}"
    folder.mkdir()
    (folder / "file").touch()
    region = Path("/dev/shm") / f"{folder.name}-region"
    region.touch()
    yield folder, region
    region.unlink(missing_ok=True)


def marked(value):
    return list(cleaning.processes_with(f"{VARIABLE}={value}"))


def wait_until(condition):
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def test_what_a_killed_owner_left_is_ended_and_removed(start, value, left):
    folder, region = left
    process, _ = start(MARKED, **{VARIABLE: value})
    assert len(marked(value)) == 2
    owner, told = start(OWNER, value, folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(int(told), number)
    time.sleep(0.2)
    assert process.poll() is None
    assert folder.exists()
    owner.kill()
    assert process.wait(10) == -signal.SIGKILL
    wait_until(lambda: not folder.exists())
    assert not marked(value)
    assert not region.exists()


def test_an_owner_that_goes_on_has_it_done_at_once(start, value, left):
    folder, region = left
    with Janitor(VARIABLE, value, folder) as janitor:
        process, _ = start(MARKED, **janitor.environment)
        assert len(marked(value)) == 2
    assert process.wait(1) == -signal.SIGKILL
    assert not marked(value)
    assert not folder.exists()
    assert not region.exists()
    janitor.finish()


def test_one_that_is_dismissed_does_nothing(start, value, left):
    folder, region = left
    with Janitor(VARIABLE, value, folder) as janitor:
        start(MARKED, **janitor.environment)
        janitor.dismiss()
    assert len(marked(value)) == 2
    assert folder.exists()
    assert region.exists()
    cleaning.clear(f"{VARIABLE}={value}")


def test_who_may_end_in_order_is_told_so_once(start, value, tmp_path):
    janitor = Janitor(VARIABLE, value, grace_s=0.5)
    process, _ = start(COUNTING, tmp_path / "told", **janitor.environment)
    janitor.finish()
    assert process.wait(1) == -signal.SIGKILL
    assert (tmp_path / "told").read_text() == "x"


def test_no_janitor_is_ended_by_another(start, value, left):
    """A server that is ended with its whole session, or by `attune chaos`, is still tidied up after."""
    folder, region = left
    outer = Janitor(VARIABLE, value)
    process, told = start(NESTED, folder, **outer.environment)
    assert marked(value) == [process.pid], "the janitor has no mark"
    assert Path(f"/proc/{told}").exists()
    outer.finish()
    assert process.wait(1) == -signal.SIGKILL
    wait_until(lambda: not folder.exists())
    wait_until(lambda: not region.exists())


def test_what_was_just_being_started_is_found(start, value, monkeypatch):
    """It has its mark only when its program runs."""
    process, _ = start(MARKED, **{VARIABLE: value})
    looks, find = [], cleaning.processes_with

    def seen(mark):
        looks.append(mark)
        return find(mark) if len(looks) > 1 else iter(())

    monkeypatch.setattr(cleaning, "processes_with", seen)
    cleaning.clear(f"{VARIABLE}={value}")
    assert process.wait(1) == -signal.SIGKILL
