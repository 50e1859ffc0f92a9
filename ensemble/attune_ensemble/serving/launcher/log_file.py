"""A server's log: one server writes to it, and the one before is kept beside it as `<name>.1`.

The lock on it is the server's own: its processes hold the open file, so it lasts exactly as long as they do.
"""

from __future__ import annotations

import fcntl
import shutil
from io import FileIO
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable

__all__ = ["is_in_use", "open_log"]


def open_log(path: Path) -> FileIO:
    """An empty log, locked; what was in it is moved to `<name>.1`. A device or a pipe is only opened.

    Raises:
        ServerUnavailable: another server writes to it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a")
        if path.is_file():
            _begin_anew(file, path)
    except BlockingIOError:
        file.close()
        raise ServerUnavailable(f"{path} is the log of a server that runs: choose another with --log-file") from None
    except OSError as error:
        raise ServerUnavailable(
            f"the log {path} cannot be written ({error.strerror}): choose another with --log-file"
        ) from error
    return file


def _begin_anew(file: FileIO, path: Path) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if path.stat().st_size:
        # Copied, not moved: the lock belongs to this file.
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        file.truncate(0)


def is_in_use(path: Path) -> bool:
    """Whether a server writes to that log."""
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
