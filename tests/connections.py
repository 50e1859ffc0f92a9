"""Which addresses a program and all that it starts connect to, seen by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")
_LOOK_UP = "htons(53)"

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")


def strange_connections(command: list[str], trace: Path, environment: Mapping[str, str]) -> list[str]:
    """Run `command`, which has to succeed; the system calls that address another machine, or look a name up."""
    # Only these calls stop the program, so it runs nearly at its own speed.
    watch = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    done = subprocess.run([*watch, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in trace.read_text().splitlines() if _is_strange(line)]


def _is_strange(call: str) -> bool:
    addresses = [first or second for first, second in _ADDRESS.findall(call)]
    return _LOOK_UP in call or any(not _LOOPBACK.match(address) for address in addresses)
