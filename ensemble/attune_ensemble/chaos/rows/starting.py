"""Starts that cannot go well, and places where a server has to live: a full disk, a repository that is read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attune_ensemble.chaos.harness.calls import Analyse, Call, Play, Prompt
from attune_ensemble.chaos.harness.case import Case, Row, Skipped
from attune_ensemble.chaos.harness.served import DidNotStart, Served

__all__ = ["ROWS"]

CANNOT_START, BROKEN = 69, 78
"""Exit codes of `attune serve`: it cannot start here; the configuration or a model's file is wrong."""

REFUSED_S = 120.0
"""A wrong start must be over by then; a model's file may be looked at by the packaged server only."""

DAMAGED = "emotion_classifier/1/model.onnx"
"""The file that is taken away or damaged."""


def must_not_start(case: Case, server: Served, code: int, *words: str) -> None:
    """It ends by itself with the exit code, says why, and leaves nothing."""
    server.launch()
    case.pause(0.5)
    server.note()
    ended = server.wait_exit(REFUSED_S)
    case.expect(ended == code, f"its exit status is {ended}, not {code}")
    case.expect("Traceback" not in server.told, f"it shows a traceback: {server.told[-300:]}")
    missing = [word for word in words if word not in server.told]
    case.expect(not missing, f"it does not name {missing}: {server.told[-300:]}")
    case.leaves_nothing(server)


@contextlib.contextmanager
def copied_repository(case: Case) -> Iterator[Path]:
    """The repository in a folder where it may be changed; its large files are links."""
    source = case.settings.repository
    with tempfile.TemporaryDirectory(prefix="chaos-repository-") as folder:
        copy = Path(folder) / "models"
        shutil.copytree(source, copy, copy_function=_link, ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
        yield copy


def _link(source: str, target: str) -> None:
    # A small file is copied, for a database may be written to.
    if Path(source).stat().st_size > 2**20:
        Path(target).symlink_to(Path(source).resolve())
    else:
        shutil.copyfile(source, target)


def replace(file: Path, content: bytes) -> None:
    """Other content in place of a file, which may be a link."""
    file.unlink()
    file.write_bytes(content)


def missing_file(case: Case) -> None:
    """A model's file is not there."""
    with copied_repository(case) as repository:
        (repository / DAMAGED).unlink()
        must_not_start(case, case.fresh_server(start=False, repository=repository), BROKEN, "model.onnx")


def truncated_file(case: Case) -> None:
    """A model's file ends too early."""
    with copied_repository(case) as repository:
        file = repository / DAMAGED
        replace(file, file.read_bytes()[:-1000])
        must_not_start(case, case.fresh_server(start=False, repository=repository), BROKEN, "model.onnx")


def corrupt_file(case: Case) -> None:
    """A model's file has the right length, and other bytes."""
    with copied_repository(case) as repository:
        file = repository / DAMAGED
        content = file.read_bytes()
        replace(file, bytes(byte ^ 0x5A for byte in content))
        must_not_start(case, case.fresh_server(start=False, repository=repository), BROKEN, "emotion_classifier")


def port_in_use(case: Case) -> None:
    """Somebody else listens at its port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [word for word in case.options().command if word != "--free-ports"]
        server = case.fresh_server(start=False, command=command, arguments=("--grpc-port", port))
        must_not_start(case, server, CANNOT_START, port)


def read_only_repository(case: Case) -> None:
    """Nothing can be written to the repository: it serves all the same."""
    with tempfile.TemporaryDirectory(prefix="chaos-ro-") as folder, mounted(folder, case.settings.repository):
        server = case.fresh_server(repository=Path(folder))
        calls: list[Call] = [Prompt(), Analyse(case.clip), Play(audio=case.clip)]
        case.all_answered(case.at_once(server, calls), "calls to a server of a read-only repository")
        server.terminate()


def full_disk(case: Case) -> None:
    """The disk of its log and its temporary folder fills up: it goes on, and a new one says what it needs."""
    with tempfile.TemporaryDirectory(prefix="chaos-disk-") as folder, mounted(folder, None, "-o", "size=192m"):
        disk = Path(folder)
        (disk / "t").mkdir()
        server = case.fresh_server(temporary=disk / "t", log_file=disk / "server.log")
        calls: list[Call] = [Prompt(), Analyse(case.clip), Play(audio=case.clip)]
        case.all_answered(case.at_once(server, calls), "calls before")
        fill(disk / "filler")
        case.at_once(server, calls * 2)
        case.recovers(server, Prompt(name="a good call on a full disk"), within_s=10.0)
        starts_or_says_why(case, case.fresh_server(start=False, temporary=disk / "t", log_file=disk / "second.log"))
        (disk / "filler").unlink()
        case.all_answered(case.at_once(server, calls), "calls once there is space again")
        code = server.terminate()
        case.expect(code == 0, f"its exit status is {code}, not 0")
        case.leaves_nothing(server)


def starts_or_says_why(case: Case, server: Served) -> None:
    """On a full disk a server serves, or says what it needs."""
    try:
        server.start(REFUSED_S)
    except DidNotStart as ended:
        code = server.wait_exit(REFUSED_S)
        case.expect(code == CANNOT_START, f"a server that starts on a full disk has exit status {code}")
        case.expect("space" in ended.told, f"it does not say that there is no space: {ended.told[-300:]}")
        case.expect("Traceback" not in ended.told, f"it shows a traceback: {ended.told[-300:]}")
        return
    case.all_answered([case.ask(server, Prompt())], "a call to a server that has started on a full disk")
    server.terminate()


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while stream.write(bytes(2**16)):
            pass


@contextlib.contextmanager
def mounted(folder: str, source: Path | None, *options: str) -> Iterator[None]:
    """A small disk in memory at the folder; or, of a source, a view of it that cannot be written to.

    Raises:
        Skipped: this user, or this container, may not mount.
    """
    if os.geteuid():
        raise Skipped("only root may mount")
    steps = [["mount", "-t", "tmpfs", *options, "tmpfs", folder]]
    if source is not None:
        steps = [["mount", "--bind", str(source), folder], ["mount", "-o", "remount,ro,bind", folder]]
    done = subprocess.run(steps[0], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"mount does not work here: {done.stderr.strip()}")
    try:
        for step in steps[1:]:
            subprocess.run(step, capture_output=True, check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


ROWS = (
    Row("missing-file", "a model's file is not there", missing_file, limit_s=180, quick_limit_s=60),
    Row("truncated-file", "a model's file ends too early", truncated_file, limit_s=180),
    Row("corrupt-file", "a model's file has other bytes", corrupt_file, limit_s=240),
    Row("port-in-use", "its port is taken", port_in_use, limit_s=180, quick_limit_s=60),
    Row("read-only-repository", "the repository cannot be written to", read_only_repository, limit_s=300),
    Row("full-disk", "the disk of log and temporary files fills up", full_disk, limit_s=400),
)
