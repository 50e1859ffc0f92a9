"""What is seen of a server's processes, and that what cannot be seen is no death: `pytest
tests/unit/test_process_watch.py`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.serving.launcher import server as launched
from attune_ensemble.serving.launcher.processes import process_of, processor_seconds, state_of
from attune_ensemble.serving.supervisor import commands
from attune_ensemble.serving.supervisor.policy import Ending
from attune_ensemble.serving.supervisor.watching import ProcessWatch, kill

SPIN = "print(flush=True)\nwhile True: pass"


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started
        started.kill()


@contextlib.contextmanager
def too_many_open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_that_cannot_be_seen_has_not_ended(child):
    process = process_of(child.pid)
    watch = ProcessWatch(os.getpid(), stopped_s=0.0)
    watch.expect({"valence": (process,)})
    with too_many_open_files():
        with pytest.raises(OSError, match="Too many open files"):
            state_of(process)
        assert watch.endings() == {}
        assert not watch.server_is_stopped()
    kill((process,))
    child.wait()
    assert watch.endings() == {"valence": (Ending.DIED, {"pid": child.pid})}


def test_processor_time_of_a_process_grows_while_it_works(child):
    process = process_of(child.pid)
    deadline_s = time.monotonic() + 30
    while processor_seconds(process) < 0.1:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert processor_seconds(process) == 0.0


def test_as_many_files_as_may_be_are_allowed(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        commands._allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > min(soft, 512) or hard <= 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tmp_that_cannot_be_written_to_is_told_before_the_server_is_started(monkeypatch, tmp_path):
    launched._require_tmp()
    monkeypatch.setattr(launched, "_TRITONS_TMP", str(tmp_path / "gone"))
    with pytest.raises(ServerUnavailable, match=r"gone cannot be written to .* Triton needs it, whatever TMPDIR names"):
        launched._require_tmp()
