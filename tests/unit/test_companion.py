"""A command that runs beside a server: `pytest tests/unit/test_companion.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from attune_ensemble.serving.launcher import companion
from attune_ensemble.serving.launcher.companion import ServerGone, run_beside

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


def test_without_a_terminal_nothing_is_in_its_foreground():
    program = "from attune_ensemble.serving.launcher.companion import _in_foreground; print(_in_foreground())"
    done = subprocess.run(python(program), start_new_session=True, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_program_that_cannot_be_started_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        run_beside(["no-such-program"], os.environ, alive)
