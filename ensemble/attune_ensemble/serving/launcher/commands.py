"""`attune serve`: run the packaged server, or print the command that runs NVIDIA's.

attune serve                                          # until Ctrl-C
attune serve --free-ports -- attune play speech.wav   # for as long as a command runs
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tomllib
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import EMBEDDED, PROFILES, Profile
from attune_ensemble.serving.launcher.companion import ServerGone, run_beside
from attune_ensemble.serving.launcher.log_file import is_in_use
from attune_ensemble.serving.launcher.server import LOOPBACK, Ports, Server, free_ports
from attune_ensemble.serving.own_server import OWN_URL
from attune_ensemble.serving.repository import check_repository

__all__ = ["container_command", "serve"]

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""The oldest release of NVIDIA's image with the fixes of the security bulletins of 2025 and 2026."""

_IMAGE_EXTRAS = ("models", "musicgen")
"""Extras that are installed in NVIDIA's image, in addition to this project's sources."""

_ROOT = Path(__file__).parents[4]
DEFAULT_LOG = Path("out/server.log")
_INTERRUPTED = 130
_PORT = click.IntRange(1, 65535)


@click.command()
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default=EMBEDDED.name,
    show_default=True,
    help="; ".join(f"{profile}: {profile.purpose}" for profile in PROFILES.values())
    + f".  Only {EMBEDDED} is served from here; for the others the container command is printed.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option("--free-ports", "any_ports", is_flag=True, help="Use whatever three ports are free.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where the server and its models write.  [default: {DEFAULT_LOG}, with its port in the name beside another]",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def serve(
    profile: str,
    repository: Path,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    any_ports: bool,
    log_file: Path | None,
    command: tuple[str, ...],
) -> None:
    """Serve the models until Ctrl-C, or for as long as COMMAND runs.

    COMMAND finds the server's address in ATTUNE_URL; its exit status becomes this one's. It gets the signals that are
    sent here; when the server ends first, COMMAND is ended, and the exit status is 1.
    """
    _require_repository(repository)
    ports = free_ports() if any_ports else Ports(http_port, grpc_port, metrics_port)
    if profile != EMBEDDED.name:
        try:
            check_repository(repository, profile=PROFILES[profile])
        except AttuneError as error:  # the container would refuse too, but only after it was pulled and set up
            click.echo(f"not to be served yet: {error}", err=True)
        click.echo(container_command(PROFILES[profile], repository, ports))
        return
    _require_program(command)
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        signal.signal(number, _interrupt)
    try:
        status = run(Server(repository, ports=ports, log_file=log_file or default_log(ports)), command)
    except AttuneError as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(status)


def run(server: Server, command: tuple[str, ...]) -> int:
    """Run the server until `command` ends, or until Ctrl-C, SIGTERM or SIGHUP; returns the exit status."""
    console = Console(stderr=True)
    try:
        with console.status("loading the models"):
            server.start()
        if command:
            return _run_beside(server, command)
        console.print(
            f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}/metrics; "
            f"log {server.log_file}; Ctrl-C stops it",
            soft_wrap=True,
        )
        code = server.wait()
        raise click.ClickException(f"the server ended with code {code}; its log: {server.log_file}")
    except KeyboardInterrupt:
        console.print("stopping, once what is in flight has finished")
        return _INTERRUPTED if command else 0
    finally:
        server.stop()


def _run_beside(server: Server, command: tuple[str, ...]) -> int:
    environment = os.environ | {"ATTUNE_URL": server.grpc_url, "ATTUNE_SERVER_PID": str(server.process_id)}
    try:
        return run_beside(command, environment, server.exit_code)
    except ServerGone as gone:
        raise click.ClickException(
            f"the server ended with code {gone.code} while {command[0]} ran; its log: {server.log_file}"
        ) from None


def default_log(ports: Ports) -> Path:
    """Return the default log file, unless another server writes to it."""
    return DEFAULT_LOG.with_stem(f"{DEFAULT_LOG.stem}-{ports.grpc}") if is_in_use(DEFAULT_LOG) else DEFAULT_LOG


def _require_repository(repository: Path) -> None:
    if not any(repository.glob("*/config.pbtxt")):
        raise click.ClickException(
            f"there is no model repository at {repository.resolve()}. Run this in a clone of Attune's sources, or name "
            "the repository of one: --repository DIR. `attune export`, run there, places the models."
        )


def _require_program(command: tuple[str, ...]) -> None:
    """Check that the program of the command exists, before the models are loaded."""
    if command and shutil.which(command[0]) is None:
        raise click.ClickException(f"{click.format_filename(command[0])}: there is no such program")


def container_command(profile: Profile, repository: Path, ports: Ports) -> str:
    """One shell line that serves `profile` from NVIDIA's image: the repository and the sources are mounted in it.

    Raises:
        click.ClickException: Attune was not installed from a clone, which has the sources.
    """
    serve_line = (
        f"pip install --quiet --constraint /attune/constraints.txt {shlex.join(_image_packages())} && "
        f"python3 -m attune_ensemble.serving.repository /models {profile} && "
        f"exec tritonserver --model-repository=/models --model-config-name={profile}"
    )
    default = Ports()
    published = ((ports.http, default.http), (ports.grpc, default.grpc), (ports.metrics, default.metrics))
    environment = NO_TELEMETRY | OFFLINE | {OWN_URL: f"{LOOPBACK}:{default.grpc}"}
    command = ["docker", "run", "--rm", "--gpus=all", "--shm-size=1g"]
    command += [f"--publish={LOOPBACK}:{outside}:{inside}" for outside, inside in published]
    command += [f"--volume={repository.resolve()}:/models", f"--volume={_ROOT}:/attune:ro"]
    command += [f"--env={name}={value}" for name, value in environment.items()]
    command += ["--env=PYTHONPATH=/attune/client:/attune/ensemble", IMAGE, "bash", "-c", serve_line]
    return shlex.join(command)


def _image_packages() -> list[str]:
    """Return the requirements of the extras that are installed in the image, as declared in pyproject.toml."""
    project = _ROOT / "pyproject.toml"
    if not project.is_file():
        raise click.ClickException("the container command mounts Attune's sources: run this in a clone's environment")
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [requirement for extra in _IMAGE_EXTRAS for requirement in extras[extra]]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
