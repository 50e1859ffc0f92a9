"""A server's log file: written by one server, with the previous log kept as `<name>.1`.

Its lock is held by the server's processes through the open file, so it is released when they end.
"""

from __future__ import annotations

import fcntl
import shutil
from io import FileIO
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable

__all__ = ["is_in_use", "open_log"]


def open_log(path: Path, *, go_on: bool = False) -> FileIO:
    """Open an empty, locked log; its previous content is moved to `<name>.1`. A device or a pipe is only opened.

    With `go_on` it is not emptied: another process of the same server writes on.

    Raises:
        ServerUnavailable: another server writes to it, or it cannot be written.
    """
    file: FileIO | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a")
        if path.is_file():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not go_on:
                _begin_anew(file, path)
    except BlockingIOError:
        _close(file)
        raise ServerUnavailable(f"{path} is the log of a server that runs: choose another with --log-file") from None
    except OSError as error:
        _close(file)
        raise ServerUnavailable(
            f"the log {path} cannot be written ({error.strerror}): choose another with --log-file"
        ) from error
    return file


def _close(file: FileIO | None) -> None:
    """Give its lock back at once: the error that is raised keeps what it passed."""
    if file is not None:
        file.close()


def _begin_anew(file: FileIO, path: Path) -> None:
    if path.stat().st_size:
        # Copied, not moved, since the lock is on this file.
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        file.truncate(0)


def is_in_use(path: Path) -> bool:
    """Return whether a server writes to that log."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
