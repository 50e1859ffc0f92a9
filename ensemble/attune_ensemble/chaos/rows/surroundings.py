"""A container's narrow surroundings: 64 MB of shared memory, and a root that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attune_ensemble.chaos.harness.calls import Analyse, Play, Prompt
from attune_ensemble.chaos.harness.case import Case, Row, Skipped
from attune_ensemble.chaos.harness.served import SERVE, DidNotStart

__all__ = ["ROWS"]

_UNSHARE = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
_SMALL_SHM = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
_WRITABLE = 'mount --bind "$d" "$d"'


def _script(*, small_shm: bool, writable: Sequence[Path], read_only: bool, tmp: Path | None = None) -> str:
    """A shell script that narrows what the program behind it sees, and becomes that program."""
    lines = [_SMALL_SHM] if small_shm else []
    lines += [f"mount --bind '{tmp}' /tmp; export TMPDIR=/tmp"] if tmp else []
    lines += [f"d='{folder}'; {_WRITABLE}" for folder in writable]
    lines += ["mount -o remount,bind,ro /"] if read_only else []
    return "\n".join([*lines, 'exec "$0" "$@"'])


def _require_namespaces() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise Skipped("only root may mount, and unshare is needed")
    tried = subprocess.run([*_UNSHARE, _script(small_shm=True, writable=[], read_only=True), "true"], check=False)
    if tried.returncode != 0:
        raise Skipped("no file system can be mounted in a namespace here")


def _command(case: Case, script: str) -> tuple[str, ...]:
    program = case.settings.options.command if case.settings.options is not None else SERVE
    return (*_UNSHARE, script, *program)


def small_shm(case: Case) -> None:
    """64 MB of /dev/shm and a read-only root, with a /tmp of its own and a folder for the log: as in a container."""
    _require_namespaces()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        script = _script(small_shm=True, writable=[case.settings.logs], read_only=True, tmp=folder)
        server = case.fresh_server(command=_command(case, script), temporary=folder)
        case.all_answered(case.at_once(server, [Prompt(), Analyse(case.clip), Play(seconds=5)]), "in 64 MB")
        case.at_once(server, [Analyse(bytes(40 * 2**20), name="40 MB that are no recording")])
        case.at_once(server, [Play(seconds=60, pause_s=0.2, chunks=40, name="a slow reader")] * 4)
        case.all_answered([case.ask(server, Prompt())], "afterwards")


def read_only_root(case: Case) -> None:
    """Nothing can be written at all: it says in one line what it needs, and ends."""
    _require_namespaces()
    script = _script(small_shm=False, writable=[case.settings.logs], read_only=True)
    try:
        case.fresh_server(command=_command(case, script))
    except DidNotStart as error:
        case.expect("TMPDIR" in error.told, f"it does not say what it needs: {error}")
        case.expect("Traceback" not in error.told, "it shows a traceback")
    else:
        case.expect(False, "it started, although nothing can be written")


ROWS = (
    Row("small-shm", "64 MB of /dev/shm, and a read-only root", small_shm, limit_s=400),
    Row("read-only-root", "no folder that can be written", read_only_root, limit_s=200),
)
