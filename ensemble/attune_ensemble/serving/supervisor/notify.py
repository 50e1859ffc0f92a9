"""What a service manager is told, by systemd's protocol (sd_notify(3)): ready, stopping, and alive again and again.

It does nothing where nobody wants to know, that is without NOTIFY_SOCKET in the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["Notifier"]


class Notifier:
    """Takes the variables of the protocol out of the environment, so that no process that is started inherits them."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._period_s = _watchdog_s(environment) / 2
        self._next_s = 0.0

    def ready(self) -> None:
        """The service is up."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service has begun to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        """To be called often: tells the watchdog, where there is one, as often as it wants to hear."""
        now_s = time.monotonic()
        if self._period_s and now_s >= self._next_s:
            self._next_s = now_s + self._period_s
            self._send("WATCHDOG=1")

    def _send(self, line: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(line.encode(), address)


def _watchdog_s(environment: MutableMapping[str, str]) -> float:
    """The watchdog's time limit in seconds; 0 where there is none, or where it is another process's."""
    limit, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not limit.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(limit) / 1e6
