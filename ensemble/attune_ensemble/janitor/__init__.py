"""A process that ends what another one has started, and removes what that leaves, when the other one is gone: SIGKILL
among the ways.

    janitor = Janitor("ATTUNE_HERE", "a token of its own", folder)
    subprocess.Popen(command, env=os.environ | janitor.environment)
    janitor.finish()  # now; or the janitor does it when this process is gone

What is to be ended is marked by a variable of its environment, which whatever it starts inherits. A janitor has none of
its owner's environment, so no janitor is ended by another before its own work is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from attune_ensemble.janitor import cleaning

__all__ = ["Janitor"]

_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NEEDED = ("LD_LIBRARY_PATH",)
"""Without it some builds of Python do not start."""

_SLACK_S = 5.0


class Janitor:
    """Waits from now on; a context manager, at whose end the work is done unless the janitor was dismissed.

    Args:
        variable: name of the environment variable by which processes are found.
        value: its value, which nobody else may have.
        folder: removed with all that is in it, and with the shared memory that is named after it.
        grace_s: how long processes may take to end by themselves after SIGTERM; with 0 they are killed at once.
    """

    def __init__(self, variable: str, value: str, folder: Path | None = None, grace_s: float = 0.0) -> None:
        self.environment = {variable: value}
        self._within_s = grace_s + cleaning.GIVE_UP_S + _SLACK_S
        work = [f"{variable}={value}", str(grace_s), *([] if folder is None else [str(folder)])]
        quiet = subprocess.DEVNULL
        # It inherits which signals are blocked: one to stop may reach every process of a control group, and this one is
        # needed after its owner. It has a session of its own, and holds nothing that others wait for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_STOP)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", cleaning.__file__, *work],
                stdin=subprocess.PIPE,
                stdout=quiet,
                stderr=quiet,
                cwd="/",
                env={name: os.environ[name] for name in _NEEDED if name in os.environ},
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def finish(self) -> None:
        """Let it do its work now, and wait until it has; the second time, and after `dismiss`, does nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._within_s)

    def dismiss(self) -> None:
        """End it: there is nothing to be done."""
        self._process.kill()
        self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
