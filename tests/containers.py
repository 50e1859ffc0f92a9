"""Which of docker's programs there are, for the tests of the images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = ["building_docker", "compose_program"]

_TIMEOUT_S = 60


@cache
def compose_program() -> tuple[str, ...] | None:
    """The command of docker compose, 2 or newer: of this environment, of docker, or of its own; None without one."""
    beside = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    candidates = [("docker", "compose"), *([(beside,)] if beside else [])]
    return next((each for each in candidates if _answers(*each, "version", "--short", but="1.")), None)


@cache
def building_docker() -> str | None:
    """A docker whose daemon answers and that builds with BuildKit, on the PATH or Debian's; None without one."""
    found = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path and Path(path).exists()]
    return next((each for each in found if _answers(each, "version") and _has_buildkit(each)), None)


def _has_buildkit(docker: str) -> bool:
    command = [docker, "build", "--help"]
    done = subprocess.run(
        command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    return "--secret" in done.stdout


def _answers(*command: str, but: str = "\0") -> bool:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except OSError:
        return False
    return done.returncode == 0 and not done.stdout.startswith(but)
