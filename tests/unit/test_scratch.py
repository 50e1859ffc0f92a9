"""Folders that go when nobody uses them any more: `pytest tests/unit/test_scratch.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attune_ensemble.serving.scratch import Scratch, clear_abandoned, new_name

HOLDER = """
import subprocess, sys, tempfile
from attune_ensemble.serving.scratch import Scratch
tempfile.tempdir = sys.argv[1]
scratch = Scratch("x-killed")
child = subprocess.Popen(["sleep", "60"], pass_fds=(scratch.lock,))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def make_old(path: Path) -> Path:
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def test_a_folder_is_private_and_goes_with_its_content(temporary):
    scratch = Scratch(new_name("x-"))
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    (scratch.path / "file").touch()
    scratch.remove()
    scratch.remove()
    assert not list(temporary.iterdir())


def test_names_cannot_be_foreseen():
    assert len({new_name("x-") for _ in range(100)}) == 100


def test_what_is_held_or_young_or_of_another_kind_stays(temporary):
    held = Scratch("x-held")
    make_old(held.path)
    (temporary / "x-young").mkdir()
    make_old(temporary / "x-young").rename(temporary / "y-other")
    (temporary / "x-young").mkdir()
    (temporary / "x-link").symlink_to(temporary / "y-other")
    make_old(temporary)
    assert list(clear_abandoned("x-")) == []
    assert {path.name for path in temporary.iterdir()} == {"x-held", "x-young", "x-link", "y-other"}
    held.remove()


def test_what_a_killed_process_left_is_cleared_once_its_children_have_gone(temporary):
    command = [sys.executable, "-c", HOLDER, str(temporary)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        make_old(temporary / "x-killed")
        assert list(clear_abandoned("x-")) == [], "the child holds it"
    finally:
        os.kill(child, signal.SIGKILL)
    deadline_s = time.monotonic() + 5
    while not (cleared := list(clear_abandoned("x-"))) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert cleared == ["x-killed"]
    assert not list(temporary.iterdir())
