"""The command line that serves a profile in a container: the image that `docker/gpu.Dockerfile` makes of NVIDIA's."""

from __future__ import annotations

import shlex
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import Profile
from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports

__all__ = ["IMAGE", "container_command"]

IMAGE = "attune:gpu"
"""The image, as the command builds it where it is not built yet."""

_ROOT = Path(__file__).parents[4]
_DOCKERFILE = Path("docker") / "gpu.Dockerfile"
_DRAIN_S = 60
_LIMITS = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=1g")


def container_command(profile: Profile, repository: Path, ports: Ports) -> str:
    """One shell line that builds the image, unless it is built, and serves `profile` from it, the repository mounted.

    Raises:
        ServerUnavailable: Attune was not installed from a clone, which has the sources.
    """
    if not (_ROOT / _DOCKERFILE).is_file():
        raise ServerUnavailable("the image is built from Attune's sources: run this in a clone's environment")
    build = ["docker", "build", "--quiet", f"--file={_ROOT / _DOCKERFILE}", f"--tag={IMAGE}", str(_ROOT)]
    inside = Ports()
    published = ((ports.http, inside.http), (ports.grpc, inside.grpc))
    run = ["docker", "run", "--rm", "--gpus=all", *_LIMITS, f"--stop-timeout={_DRAIN_S}"]
    run += [f"--publish={LOOPBACK}:{outside}:{port}" for outside, port in published]
    run += [f"--volume={repository.resolve()}:/models:ro"]
    run += [f"--env={name}={value}" for name, value in (NO_TELEMETRY | OFFLINE).items()]
    return f"DOCKER_BUILDKIT=1 {shlex.join(build)} && {shlex.join([*run, IMAGE, '--profile', profile.name])}"
