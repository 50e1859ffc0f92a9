"""A command that runs beside a server: `pytest tests/unit/test_companion.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from attune_ensemble.serving.launcher import companion
from attune_ensemble.serving.launcher.companion import ServerGone, run_beside
from attune_ensemble.serving.launcher.processes import process_of, state_of

LISTENER = """
import signal, sys, time
def heard(number, frame):
    print("heard", number, flush=True)
    sys.exit(7)
signal.signal(signal.SIGINT, heard), signal.signal(signal.SIGTERM, heard), signal.signal(signal.SIGHUP, heard)
open(sys.argv[1], "w").close()
time.sleep(30)
"""
DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(30)
"""


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def send_when_there(path, number):
    def work():
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=work, daemon=True).start()


def alive():
    return None


def test_the_exit_status_is_the_commands():
    assert run_beside(python("import sys; sys.exit(3)"), os.environ, alive) == 3
    assert run_beside(python("import os; os.kill(os.getpid(), 9)"), os.environ, alive) == 128 + 9


def test_a_server_that_ends_first_ends_the_command(tmp_path):
    ready = tmp_path / "ready"
    started_s = time.monotonic()
    with pytest.raises(ServerGone) as gone:
        run_beside(python(LISTENER, ready), os.environ, lambda: 11 if ready.exists() else None)
    assert gone.value.code == 11
    assert time.monotonic() - started_s < 10


def test_a_command_that_does_not_listen_is_ended_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(companion, "_GRACE_S", 0.3)
    ready = tmp_path / "ready"
    with pytest.raises(ServerGone):
        run_beside(python(DEAF, ready), os.environ, lambda: 1 if ready.exists() else None)
    ready.unlink()
    send_when_there(ready, signal.SIGTERM)
    assert run_beside(python(DEAF, ready), os.environ, alive) == 128 + 9


def test_a_command_that_ended_well_beside_a_dead_server_did_not_end_well():
    with pytest.raises(ServerGone):
        run_beside(python("pass"), os.environ, lambda: 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(tmp_path, capfd, monkeypatch, number):
    monkeypatch.setattr(companion, "_in_foreground", lambda: False)
    before = signal.getsignal(number)
    send_when_there(tmp_path / "ready", number)
    assert run_beside(python(LISTENER, tmp_path / "ready"), os.environ, alive) == 7
    assert capfd.readouterr().out == f"heard {number.value}\n"
    assert signal.getsignal(number) is before


def test_a_terminals_interrupt_is_not_doubled(tmp_path, monkeypatch):
    monkeypatch.setattr(companion, "_in_foreground", lambda: True)
    program = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(0.5)"
    send_when_there(tmp_path / "ready", signal.SIGINT)
    assert run_beside(python(program, tmp_path / "ready"), os.environ, alive) == 0


# What a command starts notes its process id in its last argument.
NOTING = "import os, sys; open(sys.argv[-1], 'w').write(str(os.getpid()));"
QUIET = f"{NOTING} import time; time.sleep(60)"
POLITE = f"{NOTING} import signal\nsignal.signal(15, lambda *_: open(sys.argv[-1] + '-15', 'w'))\nsignal.pause()"
RUDE = f"{NOTING} import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"

# Runs its first argument in another process, which notes itself in the second one.
STARTING = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:3]], start_new_session=True)
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
"""
STAYING = f"{STARTING}exec(sys.argv[1])"
OWNER = """
import os, sys
from attune_ensemble.serving.launcher import companion
companion._GRACE_S = float(sys.argv[1])
companion.run_beside(sys.argv[2:], os.environ, lambda: None)
"""


def process_in(note):
    wait_until(lambda: note.exists() and note.read_text())
    return process_of(int(note.read_text()))


def wait_until(condition):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def notes(tmp_path):
    """Where a command's child notes itself, and the command; both are ended."""
    notes = tmp_path / "child", tmp_path / "command"
    yield notes
    for note in notes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(note.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("program", [QUIET, POLITE, RUDE])
def test_whoever_is_killed_leaves_no_command(tmp_path, notes, program):
    """Nor what it has started in another session; each is asked to end before it is made to."""
    owner = subprocess.Popen(python(OWNER, 0.5 if program == RUDE else 30, *python(STAYING, program, *notes)))
    processes = [process_in(note) for note in notes]
    time.sleep(0.2)
    assert not any(state_of(each).has_ended for each in processes)
    owner.kill()
    owner.wait()
    wait_until(lambda: all(state_of(each).has_ended for each in processes))
    assert len(list(tmp_path.glob("*-15"))) == (2 if program == POLITE else 0)


def test_a_server_that_ends_first_ends_what_the_command_has_started(notes):
    with pytest.raises(ServerGone):
        run_beside(python(STAYING, QUIET, *notes), os.environ, lambda: 1 if notes[1].exists() else None)
    assert all(state_of(process_in(note)).has_ended for note in notes)


def test_so_does_a_signal_to_stop(notes):
    send_when_there(notes[1], signal.SIGTERM)
    assert run_beside(python(STAYING, QUIET, *notes), os.environ, alive) == 128 + signal.SIGTERM
    assert state_of(process_in(notes[0])).has_ended


def test_what_a_command_leaves_in_the_background_stays(notes):
    assert run_beside(python(STARTING, QUIET, *notes), os.environ, alive) == 0
    assert not state_of(process_in(notes[0])).has_ended


def test_without_a_terminal_nothing_is_in_its_foreground():
    program = "from attune_ensemble.serving.launcher.companion import _in_foreground; print(_in_foreground())"
    done = subprocess.run(python(program), start_new_session=True, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_program_that_cannot_be_started_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        run_beside(["no-such-program"], os.environ, alive)
