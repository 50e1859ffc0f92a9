"""The `attune` command; also `python -m attune_client`."""

from __future__ import annotations

import os

from attune_client.interruption import Interrupted, leave_on_signals

__all__ = ["main"]


def main() -> None:
    """Run the command; Ctrl-C ends it quietly at any time, that of its imports included."""
    leave_on_signals()
    from attune_client.cli import main as command

    try:
        command(prog_name="attune")
    except Interrupted as end:
        # Threads and libraries that still wait for something are not waited for.
        os._exit(int(end.code or 0))


if __name__ == "__main__":
    main()
