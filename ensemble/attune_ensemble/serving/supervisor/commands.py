"""`attune serve`: serve a model repository and keep it served, or print the command that does so in NVIDIA's image.

attune serve                                          # until Ctrl-C
attune serve --free-ports -- attune play speech.wav   # for as long as a command runs
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from attune_client.protocol.errors import AttuneError
from attune_client.protocol.profiles import EMBEDDED, PROFILES, Profile
from attune_ensemble.serving.guard import GuardSettings
from attune_ensemble.serving.launcher.companion import ServerGone, run_beside
from attune_ensemble.serving.launcher.container import container_command
from attune_ensemble.serving.launcher.layout import installed_server
from attune_ensemble.serving.launcher.log_file import is_in_use
from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports, free_ports
from attune_ensemble.serving.repository import BrokenRepository, check_repository
from attune_ensemble.serving.supervisor.events import Events
from attune_ensemble.serving.supervisor.notify import Notifier
from attune_ensemble.serving.supervisor.supervisor import GaveUp, Supervisor
from attune_ensemble.serving.supervisor.times import Times

__all__ = ["DEFAULT_LOG", "EXIT_CODES", "default_log", "run", "serve"]

DEFAULT_LOG = Path("out/server.log")
_INTERRUPTED, _NO_PROGRAM = 130, 127
_CONFIGURATION, _GAVE_UP, _UNAVAILABLE = os.EX_CONFIG, os.EX_SOFTWARE, os.EX_UNAVAILABLE
_PORT = click.IntRange(1, 65535)
_OPEN_FILES = 65_536

EXIT_CODES: tuple[tuple[type[AttuneError], int], ...] = (
    (BrokenRepository, _CONFIGURATION),
    (GaveUp, _GAVE_UP),
    (AttuneError, _UNAVAILABLE),
)
"""Exit code for each kind of error, the first that fits: those of sysexits(3)."""


@click.command()
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default=EMBEDDED.name,
    show_default=True,
    help="; ".join(f"{profile}: {profile.purpose}" for profile in PROFILES.values())
    + f".  Where there is no tritonserver on the PATH, only {EMBEDDED} is served; for the others the container "
    "command is printed.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option("--grpc-port", type=_PORT, default=Ports().grpc, show_default=True, help="For requests.")
@click.option("--http-port", type=_PORT, default=Ports().http, show_default=True, help="For health and metrics.")
@click.option("--free-ports", "any_ports", is_flag=True, help="Use whatever two ports are free.")
@click.option(
    "--host",
    default=LOOPBACK,
    show_default=True,
    help=f"The address to listen at. With {EMBEDDED} one of the loopback interface, unless --private-network is given.",
)
@click.option(
    "--private-network",
    is_flag=True,
    help=f"Only machines of the operator's reach --host, as on a container's own network: {EMBEDDED} may be served "
    "there. Nothing is encrypted, and nobody has to say who they are.",
)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where the server and its models write.  [default: {DEFAULT_LOG}, with its port in the name beside another]",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="Of the events on standard error; auto: text on a terminal, else JSON.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0, 86_400),
    default=Times().drain_s,
    show_default=True,
    help="How long requests in flight may go on after the signal to stop.",
)
@click.option(
    "--notice-seconds",
    type=click.FloatRange(0, 3_600),
    default=Times().notice_s,
    show_default=True,
    help="How long before that new ones are still taken, while /readyz says 503: for a balancer that looks now and "
    "then.",
)
@click.option(
    "--max-message-mib",
    type=click.IntRange(1, 2047),
    default=GuardSettings().max_message_bytes // 2**20,
    show_default=True,
    help="Largest request that is taken.",
)
@click.option(
    "--client-share",
    type=click.FloatRange(0, 1, min_open=True),
    default=GuardSettings().client_share,
    show_default=True,
    help="The part of a model's places that one client may take; a client is the address that calls come from.",
)
@click.option(
    "--trust-client-metadata",
    is_flag=True,
    help="Behind a proxy that sets it: a client is whom the metadata attune-client of a call names.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def serve(
    profile: str,
    repository: Path,
    grpc_port: int,
    http_port: int,
    any_ports: bool,
    host: str,
    private_network: bool,
    log_file: Path | None,
    log_format: str,
    drain_seconds: float,
    notice_seconds: float,
    max_message_mib: int,
    client_share: float,
    trust_client_metadata: bool,
    command: tuple[str, ...],
) -> None:
    """Serve the models until Ctrl-C, or for as long as COMMAND runs.

    A model or a server that dies is brought back. SIGTERM and Ctrl-C let requests in flight finish; a second one ends
    them. COMMAND finds the server's address in ATTUNE_URL, gets the signals that are sent here, and ends with this
    process, whatever ends that; its exit status becomes this one's.

    Exit status: 0 stopped in order; 69 it cannot be served here (a port, a folder, the server); 70 the server ended too
    often; 78 the model repository is not right, or --host is none to listen at; 127 there is no such program as
    COMMAND; 130 interrupted while COMMAND was to run.
    """
    _require_repository(repository)
    served = PROFILES[profile]
    asked = None if any_ports else Ports(http_port, grpc_port)
    if served != EMBEDDED and installed_server() is None:
        _print_container_command(served, repository, asked or free_ports())
        return
    _require_address(host, served, is_private=private_network)
    ports = asked or _free_ports(host)
    _require_program(command)
    _allow_open_files()
    events = Events(sys.stderr, as_json=log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()))
    supervisor = Supervisor(
        repository,
        ports=ports,
        host=host,
        profile=served,
        log_file=log_file or default_log(ports),
        times=replace(Times(), notice_s=notice_seconds, drain_s=drain_seconds),
        guard_settings=GuardSettings(
            max_message_bytes=max_message_mib * 2**20,
            client_share=client_share,
            trust_client_metadata=trust_client_metadata,
        ),
        tell=events.tell,
        notifier=Notifier(),
    )
    try:
        status = run(supervisor, command)
    except AttuneError as error:
        raise _Failure(str(error), _exit_code(error)) from error
    finally:
        events.close()
    raise SystemExit(status)


def run(supervisor: Supervisor, command: tuple[str, ...]) -> int:
    """Serve until `command` ends, or until a signal to stop; returns the exit status.

    Raises:
        AttuneError: it could not be served, or not any more.
    """
    with _signals(supervisor.ask_to_stop):
        if not supervisor.start():
            return _INTERRUPTED if command else 0
        if command:
            return _run_beside(supervisor, command)
        supervisor.wait()
    if supervisor.error is not None:
        raise supervisor.error
    return 0


def _run_beside(supervisor: Supervisor, command: tuple[str, ...]) -> int:
    environment = os.environ | {"ATTUNE_URL": supervisor.grpc_url, "ATTUNE_SERVER_PID": str(supervisor.process_id)}
    try:
        return run_beside(command, environment, lambda: _GAVE_UP if supervisor.error is not None else None)
    except ServerGone:
        raise GaveUp(
            f"{supervisor.error}, while {command[0]} ran; the server's log: {supervisor.log_file}"
        ) from supervisor.error
    finally:
        supervisor.stop()


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal) call `stop`, except those that are ignored, as with nohup."""
    heeded = [each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _is_heeded(each)]
    before = {number: signal.signal(number, lambda *_: stop()) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_heeded(number: signal.Signals) -> bool:
    return signal.getsignal(number) is not signal.SIG_IGN


def default_log(ports: Ports) -> Path:
    """Return the default log file, unless another server writes to it."""
    return DEFAULT_LOG.with_stem(f"{DEFAULT_LOG.stem}-{ports.grpc}") if is_in_use(DEFAULT_LOG) else DEFAULT_LOG


def _print_container_command(profile: Profile, repository: Path, ports: Ports) -> None:
    try:
        check_repository(repository, profile=profile)
    except AttuneError as error:  # the container would refuse too, but only after it was pulled and set up
        click.echo(f"not to be served yet: {error}", err=True)
    click.echo(container_command(profile, repository, ports))


def _allow_open_files() -> None:
    """Let this process, and the server, have as many files and connections open as they may: shells allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _require_repository(repository: Path) -> None:
    if not any(repository.glob("*/config.pbtxt")):
        raise _Failure(
            f"there is no model repository at {repository.resolve()}. Run this in a clone of Attune's sources, or name "
            "the repository of one: --repository DIR. `attune export`, run there, places the models.",
            _CONFIGURATION,
        )


def _require_address(host: str, profile: Profile, *, is_private: bool) -> None:
    """Check that the packaged server, whose release predates security fixes, is reached from this machine alone, or
    where the operator says so from a private network: the guard in front of it lets through what models declare."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise _Failure(f"--host takes an address, such as {LOOPBACK}, not {host!r}", _CONFIGURATION) from error
    if profile == EMBEDDED and not is_loopback and not is_private:
        raise _Failure(
            f"the packaged server's release predates security fixes: it is served at the loopback interface only, not "
            f"at {host}. What faces a network is NVIDIA's image (--profile gpu). Where only machines of yours reach "
            f"{host}, as in a container, say so with --private-network",
            _CONFIGURATION,
        )


def _free_ports(host: str) -> Ports:
    try:
        return free_ports(host)
    except AttuneError as error:
        raise _Failure(str(error), _exit_code(error)) from error


def _require_program(command: tuple[str, ...]) -> None:
    """Check that the program of the command exists, before the models are loaded."""
    if command and shutil.which(command[0]) is None:
        raise _Failure(f"{click.format_filename(command[0])}: there is no such program", _NO_PROGRAM)


class _Failure(click.ClickException):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


def _exit_code(error: AttuneError) -> int:
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
