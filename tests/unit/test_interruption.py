"""Every command ends soon after its first signal, wherever it is: `pytest tests/unit/test_interruption.py`."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import soundfile as sf

from attune_client import cli
from attune_client.interruption import Interrupted, Interruption, Interruptions, leave_on_signals, usual_signals
from tests.fake_server import FakeServer, steps

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WITHIN_S = 2.0  # a command takes less than one, and the machine may have much else to do
PLAYED = steps(["session"], *([["music", 8_000], ["sleep", 0.02]] * 9), ["wait"])


@pytest.fixture(scope="module")
def server():
    with FakeServer() as server:
        yield server


def start(server, *arguments, **options):
    environment = os.environ | {"ATTUNE_URL": server.url}
    command = [sys.executable, "-m", "attune_client", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, **(pipes | options))


def wait_for_command(process):
    """Until the command's first line has run; before it the interpreter starts, which is not ours."""
    while not int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16) >> 14 & 1:
        time.sleep(0.001)


def interrupt(process, *numbers):
    """Send the signals, and return what the command had to say; fails if it does not end."""
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.002)
    try:
        told = process.communicate(timeout=WITHIN_S)[1].decode()
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail("the command did not end")
    assert process.returncode == 128 + numbers[0], told
    assert told.count("interrupted") == 1, told
    assert "Traceback" not in told
    assert "Exception" not in told
    return told


@pytest.mark.parametrize("again", [1, 2, 3])
def test_play_ends_soon_at_any_moment_and_keeps_what_has_come(server, tmp_path, again):
    """`timeout -s INT` sends two signals: the second must not tear apart what the first began."""
    heard = 0
    for number, delay_s in zip(itertools.cycle(SIGNALS), [0.0, 0.01, 0.02] + [0.05 * n for n in range(1, 25)]):
        music = tmp_path / "music.wav"
        music.unlink(missing_ok=True)
        process = start(server, "play", "--text", PLAYED, "-o", music)
        wait_for_command(process)
        time.sleep(delay_s)
        told = interrupt(process, *[number] * again)
        if kept := re.search(r"(\d\.\d) s of music were kept", told):
            assert sf.info(music).duration == pytest.approx(float(kept[1]), abs=0.06)
            heard += 1
        else:
            assert not music.exists()
    assert heard  # some of them while the music came


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["analyse", "models", "bench", "load", "play"])
def test_every_command_ends_soon_while_it_waits_for_the_server(command, number, samples, tmp_path):
    """At a server that takes connections and never says a word."""
    arguments = {
        "analyse": ["analyse", *samples[:3]],
        "bench": ["bench", "pipeline", samples[0]],
        "load": ["bench", "serving", samples[0]],
        "models": ["models"],
        "play": ["play", samples[0], "-o", tmp_path / "music.wav"],
    }
    with FakeServer() as server:
        subprocess.run(["kill", "-STOP", str(server.pid)], check=True)
        process = start(server, *arguments[command])
        wait_for_command(process)
        time.sleep(1.5)
        assert process.poll() is None
        interrupt(process, number, number)


@pytest.mark.parametrize("command", [["analyse"], ["play", "-o", "music.wav"]])
def test_a_command_that_waits_for_a_recording_ends_soon(server, tmp_path, command):
    os.mkfifo(tmp_path / "pipe.wav")
    process = start(server, *command, tmp_path / "pipe.wav", cwd=tmp_path)
    wait_for_command(process)
    time.sleep(1.5)
    interrupt(process, signal.SIGINT)


def test_a_command_whose_reader_stands_still_ends_soon(server):
    """A write that blocks is not interrupted, but it does not hold the process either."""
    process = start(server, "play", "--text", steps(["session"], ["music", 105_600]), "-o", "-")
    wait_for_command(process)
    time.sleep(1.5)
    assert process.poll() is None
    begun_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN_S) == 143
    assert time.monotonic() - begun_s < WITHIN_S
    process.communicate()


def test_what_nohup_ignores_stays_ignored(server, tmp_path):
    music = tmp_path / "music.wav"
    process = start(
        *(server, "play", "--text", steps(["session"], ["sleep", 0.5], ["music", 105_600]), "-o", music),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_command(process)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.returncode == 0
    assert sf.info(music).frames == 105_600


# --- within one process ---


@pytest.fixture
def usual():
    """The handlers of the test run, put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_commands_of_other_packages_get_the_usual_handlers(usual, monkeypatch):
    usual_handlers = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    for number, handler in zip(SIGNALS, usual_handlers, strict=True):
        signal.signal(number, handler)
    leave_on_signals()
    ours = handlers()
    assert not set(ours) & set(usual_handlers)
    points = {"models": "attune_client.commands:models", "other": "tests.unit.test_commands:attune"}
    monkeypatch.setattr(cli, "entry_points", lambda *, group, name: [EntryPoint(name, points[name], group)])
    cli.main.get_command(None, "models")
    assert handlers() == ours
    cli.main.get_command(None, "other")
    assert handlers() == usual_handlers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave_on_signals()
    usual_signals()
    assert handlers() == [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL]


def test_only_the_first_signal_is_raised_and_the_handlers_come_back(usual):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before, threads = handlers(), threading.active_count()
    with Interruptions() as interruptions:
        with pytest.raises(Interruption) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.status == 143
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interruption), interruptions.held():  # what was lost on its way is raised again
            pass
    assert handlers() == before
    time.sleep(0.05)
    assert threading.active_count() == threads


@pytest.mark.parametrize("end_s", [0.3, 1.5])
def test_a_command_that_may_take_its_time_to_end_gets_that_and_no_more(end_s):
    program = (
        "import time\n"
        "from attune_client.interruption import Interruption, Interruptions\n"
        f"with Interruptions({end_s}):\n"
        "    try: print('up', flush=True), time.sleep(60)\n"
        "    except Interruption: time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    begun_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"interrupted\n"
    assert process.returncode == 130
    assert end_s <= time.monotonic() - begun_s < end_s + WITHIN_S


def test_an_interruption_ends_the_process_whatever_still_waits(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import threading\n"
        "from attune_client import __main__, cli\n"
        "from attune_client.interruption import Interrupted\n"
        "def command(**_):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    raise Interrupted(130)\n"
        "cli.main = command\n"
        "__main__.main()\n"
    )
    assert subprocess.run([sys.executable, script], timeout=30, check=False).returncode == 130
    assert issubclass(Interrupted, SystemExit)
