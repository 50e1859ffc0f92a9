"""The command line that serves a profile in NVIDIA's image, by the same `attune serve`."""

from __future__ import annotations

import shlex
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import Profile
from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports

__all__ = ["IMAGE", "container_command"]

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""The oldest release of NVIDIA's image with the fixes of the security bulletins of 2025 and 2026."""

_EXTRAS = "models,musicgen"
"""Extras that are installed in the image."""

_ROOT = Path(__file__).parents[4]
# What is needed to install from: the mounted clone is read-only, and installing writes beside the sources.
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "client", "ensemble", "export", "training")
_COPY = "/tmp/attune-music"
_DRAIN_S = 60


def container_command(profile: Profile, repository: Path, ports: Ports) -> str:
    """One shell line that serves `profile` from NVIDIA's image: the repository and the sources are mounted in it.

    Raises:
        ServerUnavailable: Attune was not installed from a clone, which has the sources.
    """
    if not (_ROOT / "pyproject.toml").is_file():
        raise ServerUnavailable("the container command mounts Attune's sources: run this in a clone's environment")
    inside = Ports()
    published = ((ports.http, inside.http), (ports.grpc, inside.grpc))
    sources = " ".join(f"/attune/{name}" for name in _SOURCES)
    serve_line = (
        f"mkdir {_COPY} && cp -r {sources} {_COPY} && "
        f"pip install --quiet --constraint /attune/constraints.txt '{_COPY}[{_EXTRAS}]' && "
        f"exec python3 -m attune_client serve --profile {profile} --repository /models --host 0.0.0.0 "
        "--log-file /tmp/server.log --log-format json"
    )
    # --init: an init process reaps what a server that died has left.
    command = ["docker", "run", "--rm", "--init", "--gpus=all", "--shm-size=1g", f"--stop-timeout={_DRAIN_S}"]
    command += [f"--publish={LOOPBACK}:{outside}:{port}" for outside, port in published]
    command += [f"--volume={repository.resolve()}:/models:ro", f"--volume={_ROOT}:/attune:ro"]
    command += [f"--env={name}={value}" for name, value in (NO_TELEMETRY | OFFLINE).items()]
    return shlex.join([*command, IMAGE, "bash", "-c", serve_line])
