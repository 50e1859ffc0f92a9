"""`attune serve`: run the packaged server, or print the command that runs NVIDIA's."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from attune_client.protocol.errors import AttuneError
from attune_ensemble.serving.launcher import LOOPBACK, Ports, Server
from attune_ensemble.serving.repository import check_repository

__all__ = ["container_command", "serve"]

EMBEDDED = "embedded"
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""The oldest release of NVIDIA's image with the fixes of the security bulletins of 2025 and 2026."""

# What the python models import inside NVIDIA's image, beside this project's own sources.
_CONTAINER_PACKAGES = ("chromadb", "faster-whisper", "pyyaml", "scipy", "soundfile", "soxr", "tokenizers")
_ROOT = Path(__file__).parents[3]
_PORT = click.IntRange(1, 65535)


@click.command()
@click.option(
    "--profile",
    type=click.Choice([EMBEDDED, "gpu", "tensorrt"]),
    default=EMBEDDED,
    show_default=True,
    help="embedded runs here, on the CPU; for the others the container command is printed.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option(
    "--host",
    type=click.Choice([LOOPBACK]),
    default=LOOPBACK,
    show_default=True,
    expose_value=False,
    help="The packaged server predates security fixes, so it listens on loopback only.",
)
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/server.log"),
    show_default=True,
    help="Where the server and its models write.",
)
def serve(profile: str, repository: Path, http_port: int, grpc_port: int, metrics_port: int, log_file: Path) -> None:
    """Serve the models until Ctrl-C."""
    ports = Ports(http_port, grpc_port, metrics_port)
    if profile != EMBEDDED:
        click.echo(container_command(profile, repository, ports))
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        check_repository(repository)
        run(Server(repository, ports=ports, log_file=log_file))
    except AttuneError as error:
        raise click.ClickException(str(error)) from error


def run(server: Server) -> None:
    """Start the server, say where it is, and stop it at Ctrl-C or SIGTERM."""
    console = Console(stderr=True)
    try:
        with console.status("loading the models"):
            server.start()
        console.print(
            f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}/metrics; "
            f"log {server.log_file}; Ctrl-C stops it",
            soft_wrap=True,
        )
        code = server.wait()
        raise click.ClickException(f"the server ended with code {code}; its log: {server.log_file}")
    except KeyboardInterrupt:
        console.print("stopping, once what is in flight has finished")
    finally:
        server.stop()


def container_command(profile: str, repository: Path, ports: Ports) -> str:
    """One shell line that serves `profile` from NVIDIA's image: the repository and the sources are mounted in it."""
    serve_line = (
        f"pip install --quiet {' '.join(_CONTAINER_PACKAGES)} && "
        f"exec tritonserver --model-repository=/models --model-config-name={profile}"
    )
    published = ((ports.http, 8000), (ports.grpc, 8001), (ports.metrics, 8002))
    command = ["docker", "run", "--rm", "--gpus=all", "--shm-size=1g"]
    command += [f"--publish={LOOPBACK}:{outside}:{inside}" for outside, inside in published]
    command += [f"--volume={repository.resolve()}:/models", f"--volume={_ROOT}:/attune:ro"]
    command += ["--env=PYTHONPATH=/attune/client:/attune/ensemble", IMAGE, "bash", "-c", serve_line]
    return shlex.join(command)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
