"""A stream stays at most a window ahead of its reader: `pytest tests/unit/test_flow_control.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from attune_client.protocol.errors import InvalidOption
from attune_ensemble.serving.lease import Lease, LeaseReader

# --- what the holder of a lease says ---


def test_a_reader_sees_how_many_responses_the_holder_has_taken():
    with Lease() as lease:
        reader = LeaseReader(lease.token)
        assert reader.taken() is None  # it has not said anything
        for count in (0, 1, 2**40):
            lease.taken(count)
            assert reader.taken() == count
        reader.close()


def test_a_reader_sees_the_end_though_it_has_the_file_open():
    lease = Lease()
    reader = LeaseReader(lease.token)
    lease.taken(3)
    assert reader.taken() == 3
    assert reader.is_held()
    lease.end()
    assert not reader.is_held()
    with Lease() as other:  # by the same number
        other.taken(9)
        assert other.token.split("-")[:2] == lease.token.split("-")[:2]
        assert not reader.is_held()
        assert LeaseReader(lease.token).taken() is None
    reader.close()


def test_a_reader_sees_that_the_holder_was_killed():
    code = (
        "from attune_ensemble.serving.lease import Lease; l = Lease(); l.taken(5); print(l.token, flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    reader = LeaseReader(holder.stdout.readline().strip())
    assert reader.taken() == 5
    assert reader.is_held()
    holder.kill()
    holder.wait()
    assert not reader.is_held()
    reader.close()


def test_a_reader_keeps_one_file_open_and_closes_it():
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Lease() as lease:
        lease.taken(1)
        before = files()
        reader = LeaseReader(lease.token)
        reader.is_held()
        assert files() == before  # who only asks that opens nothing
        for _ in range(10):
            reader.taken()
        assert files() == before + 1
        reader.close()
        reader.close()
        assert files() == before


def test_saying_something_after_the_end_touches_no_other_file(tmp_path):
    lease = Lease()
    number = int(lease.token.split("-")[1])
    lease.end()
    with (tmp_path / "other").open("w+b") as other:
        assert other.fileno() == number  # which is free again
        lease.taken(7)
        lease.end()
        assert other.read() == b""


def test_a_lease_may_end_while_another_thread_says_what_was_taken():
    for _ in range(50):
        lease = Lease()
        told = threading.Thread(target=lambda lease=lease: [lease.taken(count) for count in range(200)])
        told.start()
        lease.end()
        told.join()


def test_a_reader_of_no_token_of_ours_is_none():
    with pytest.raises(InvalidOption):
        LeaseReader("../../etc/passwd")
    assert LeaseReader(f"{os.getpid()}-0-{'a' * 32}").taken() is None
