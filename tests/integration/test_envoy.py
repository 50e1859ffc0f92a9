"""Envoy, as it is configured in `deploy/envoy`, in front of two replicas without models: `pytest
tests/integration/test_envoy.py`. With the real server: `tests/integration/test_replicas.py`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2, service_pb2_grpc

from attune_client.connection import failure_of, translate
from attune_client.protocol.errors import ServerBusy, ServerUnreachable, from_wire
from attune_ensemble.serving.guard.callers import CLIENT_KEY
from attune_ensemble.serving.guard.forwarding import SERVICE
from attune_ensemble.serving.guard.service import _CLOSED, REFUSED_KEY
from attune_ensemble.serving.launcher.ports import LOOPBACK, free_ports
from tests.conftest import ROOT
from tests.envoy_process import CONFIGURATION, ENVOYS, TLS_CONFIGURATION, Envoy, load, needs_envoy, validate
from tests.fake_upstream import CONFIGS
from tests.guard_clients import failure, floats, words

pytestmark = needs_envoy

SESSION = "attune-session"
SOON_S = 15.0
ANSWERED = re.compile(r'^attune_guard_requests_total\{model="(\w+)",outcome="(\w+)"\} (\d+)', re.MULTILINE)
IN_FLIGHT = re.compile(r'^attune_guard_in_flight\{model="\w+"\} (\d+)', re.MULTILINE)


class Replica:
    """A fake replica (`tests/fake_replica.py`) at two ports, which it gets again when it is started anew."""

    def __init__(self) -> None:
        self.ports = free_ports()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.fake_replica", str(self.ports.grpc), str(self.ports.http)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
        assert self._line() == "begun"

    def order(self, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        assert self._line() == what

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(SOON_S)

    def counts(self) -> Counter[str]:
        """What became of the requests that reached it."""
        found = ANSWERED.findall(self._metrics())
        return Counter({outcome: sum(int(n) for _, each, n in found if each == outcome) for _, outcome, _ in found})

    @property
    def in_flight(self) -> int:
        return sum(map(int, IN_FLIGHT.findall(self._metrics())))

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.ports.http}/metrics", timeout=5.0) as answer:
            return str(answer.read().decode())


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    both = [Replica(), Replica()]
    for replica in both:
        replica.start()
    yield both
    for replica in both:
        replica.end()


@pytest.fixture
def envoy(replicas: list[Replica], tmp_path: Path) -> Iterator[Envoy]:
    with Envoy(tmp_path, [replica.ports for replica in replicas]) as envoy:
        envoy.wait(lambda: envoy.healthy() == 2, SOON_S)
        yield envoy


@pytest.fixture
def stub(envoy: Envoy) -> Iterator[Any]:
    with grpc.insecure_channel(envoy.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def ask_all(stub: Any, count: int, **options: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: stub.ModelInfer(floats(1.0), timeout=SOON_S, **options), range(count)))


def code_of(stub: Any, request: Any) -> Any:
    """Its status; None where it is answered."""
    with contextlib.suppress(grpc.FutureTimeoutError):
        error = stub.ModelInfer.future(request, timeout=SOON_S).exception()
        return None if error is None else error.code()


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def answered(replicas: Sequence[Replica]) -> list[int]:
    return [replica.counts()["answered"] for replica in replicas]


# What the file says


def test_envoy_takes_the_configuration_and_finds_nothing_deprecated():
    assert validate(CONFIGURATION) == ""


def test_a_configuration_that_is_wrong_would_be_found(tmp_path):
    wrong = load(CONFIGURATION)
    wrong["static_resources"]["clusters"][0]["lb_polic"] = "MAGLEV"
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(wrong))
    assert "lb_polic" in validate(tmp_path / "envoy.yaml")


def requests_listener(configuration: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in configuration["static_resources"]["listeners"] if each["name"] == "requests"]
    return found


def test_with_tls_everything_else_is_the_same():
    plain, secured = load(CONFIGURATION), load(TLS_CONFIGURATION)
    socket = requests_listener(secured)["filter_chains"][0].pop("transport_socket")
    assert socket["typed_config"]["require_client_certificate"] is True
    assert secured == plain


def routes() -> list[dict[str, Any]]:
    manager = requests_listener(load(CONFIGURATION))["filter_chains"][0]["filters"][0]["typed_config"]
    found: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return found


def test_no_route_ends_a_stream_after_some_seconds():
    assert routes()
    for route in routes():
        assert route["route"]["timeout"] == "0s", "the default is 15 s"
        assert int(route["route"]["idle_timeout"].removesuffix("s")) >= 60


def test_the_names_that_both_sides_know_are_the_same():
    text = CONFIGURATION.read_text()
    assert f"name: {REFUSED_KEY}, present_match" in text
    assert f"key: {CLIENT_KEY}," in text
    assert f"header_name: {SESSION}" in text


# What it does


def test_two_replicas_get_half_each(stub, replicas):
    ask_all(stub, 200)
    first, second = answered(replicas)
    assert first + second == 200
    assert 80 <= first <= 120


def test_a_replica_that_is_busy_with_streams_gets_fewer_calls(stub, replicas):
    """Least request, of two drawn: whenever both are, and that is half of the times, it is the other one."""
    streams = [stub.ModelStreamInfer(iter([words("counter", "2")])) for _ in range(3)]
    for stream in streams:
        next(stream)
    busy, other = sorted(replicas, key=lambda replica: replica.in_flight, reverse=True)
    assert busy.in_flight > other.in_flight
    for _ in range(100):
        stub.ModelInfer(floats(1.0))
    assert 60 <= other.counts()["answered"] <= 90
    for stream in streams:
        stream.cancel()


def test_a_session_stays_with_its_replica_and_sessions_are_spread(stub, replicas):
    for number in range(40):
        before = answered(replicas)
        for _ in range(3):
            stub.ModelInfer(floats(1.0), metadata=((SESSION, f"session-{number}"),))
        grown = [after - earlier for after, earlier in zip(answered(replicas), before, strict=True)]
        assert sorted(grown) == [0, 3]
    assert min(answered(replicas)) >= 30, "of 120"


def test_after_a_replica_was_killed_its_work_ends_and_everything_new_succeeds(envoy, stub, replicas):
    calls = [stub.ModelInfer.future(words("slow", "go"), metadata=((SESSION, str(n)),)) for n in range(2)]
    streams = [stub.ModelStreamInfer(iter([words("counter", "2")])) for _ in range(8)]
    for stream in streams:
        next(stream)
    until(lambda: sum(replica.in_flight for replica in replicas) == 10)
    dead, alive = replicas
    lost, kept = dead.in_flight, alive.in_flight
    assert lost > 0
    dead.kill()
    ask_all(stub, 100)
    assert alive.counts()["answered"] == 100
    assert alive.in_flight == kept, "what the dead one was at has not been handed on"
    ended = [call for call in (*calls, *streams) if call.done()]
    assert len(ended) == lost
    assert {type(translate(failure_of(call), envoy.url)) for call in ended} == {ServerUnreachable}
    dead.start()
    envoy.wait(lambda: envoy.healthy() == 2, SOON_S)
    until(lambda: ask_all(stub, 10) or dead.counts()["answered"])  # Envoy's threads learn of it a moment later
    before = dead.counts()["answered"]
    ask_all(stub, 100)
    assert dead.counts()["answered"] - before >= 30
    alive.order("release")
    assert all(call.result() for call in calls if call not in ended)


def test_streams_that_begin_just_after_a_death_are_taken_by_the_other(stub, replicas):
    replicas[0].kill()
    for _ in range(20):
        stream = stub.ModelStreamInfer(iter([words("counter", "1")]), timeout=SOON_S)
        assert [response.error_message for response in stream] == [""]


def test_a_session_goes_on_elsewhere_when_its_replica_has_died(stub, replicas):
    metadata = ((SESSION, "mine"),)
    stub.ModelInfer(floats(1.0), metadata=metadata)
    [own] = [replica for replica in replicas if replica.counts()["answered"]]
    own.kill()
    for _ in range(20):
        stub.ModelInfer(floats(1.0), metadata=metadata)


def test_what_a_replica_refuses_the_other_one_answers(stub, replicas):
    """It drains, and nobody has looked at its health yet."""
    replicas[0].order("drain")
    ask_all(stub, 50)
    refused, other = (replica.counts() for replica in replicas)
    assert other["answered"] == 50
    assert refused["server_unavailable"] > 0
    assert not refused["answered"]


def test_one_that_is_not_ready_gets_nothing_new_and_goes_on_with_what_it_has(envoy, stub, replicas):
    stream = stub.ModelStreamInfer(iter([words("counter", "2")]))
    next(stream)
    leaving, other = sorted(replicas, key=lambda replica: replica.in_flight, reverse=True)
    leaving.order("unready")
    envoy.wait(lambda: envoy.healthy() == 1, SOON_S)
    ask_all(stub, 20)
    assert answered([leaving, other]) == [0, 20]
    assert leaving.in_flight == 1
    leaving.order("release")
    assert len(list(stream)) == 1
    leaving.order("ready")
    envoy.wait(lambda: envoy.healthy() == 2, SOON_S)


def test_where_no_replica_is_ready_that_is_told_at_once(envoy, stub, replicas):
    for replica in replicas:
        replica.order("unready")
    envoy.wait(lambda: envoy.healthy() == 0, SOON_S)
    until(lambda: code_of(stub, floats(1.0)) is grpc.StatusCode.UNAVAILABLE)  # its worker hears of it a little later
    begun_s = time.monotonic()
    assert code_of(stub, floats(1.0)) is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - begun_s < 2.0
    assert envoy.get("/readyz") == 503
    assert envoy.get("/ready") == 200


def test_envoy_measures_what_the_alerts_ask_for(envoy):
    text = envoy.page("/stats/prometheus")
    for name in ENVOYS:
        assert re.search(rf'^{name}{{[^}}]*envoy_cluster_name="replicas"[^}}]*}} 2$', text, re.MULTILINE), name


def test_what_a_replica_answers_is_no_reason_to_leave_it_alone(envoy, stub):
    for _ in range(30):
        failure(lambda: stub.ModelInfer(words("slow", "fails")))
    assert envoy.healthy() == 2


def test_what_is_the_operators_has_no_route(envoy):
    with grpc.insecure_channel(envoy.url) as channel:
        for method in (*_CLOSED, "Shutdown"):
            error = failure(lambda name=method: channel.unary_unary(f"/{SERVICE}/{name}")(b"", timeout=SOON_S))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, f"{method}: the guard would deny it"


def test_what_clients_may_call_has_a_route(stub):
    assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="echo")).ready
    assert stub.ModelConfig(service_pb2.ModelConfigRequest(name="echo")).config.name == "echo"
    assert len(stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()).models) == len(CONFIGS)


def test_what_is_compressed_has_no_route(stub):
    """A small message could be a large one behind it."""
    error = failure(lambda: stub.ModelInfer(floats(1.0), compression=grpc.Compression.Gzip))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_one_client_is_one_client_whatever_it_calls_itself(stub, replicas):
    """Two of the four places of `slow` at each replica are the most that it gets; one that refuses is not the last."""
    calls = [stub.ModelInfer.future(words("slow", "go"), metadata=((CLIENT_KEY, str(n)),)) for n in range(4)]
    until(lambda: [replica.in_flight for replica in replicas] == [2, 2])
    error = failure(lambda: stub.ModelInfer(words("slow", "go"), metadata=((CLIENT_KEY, "5"),), timeout=SOON_S))
    assert "for others" in str(from_wire(error.details()))
    assert isinstance(from_wire(error.details()), ServerBusy)
    for replica in replicas:
        replica.order("release")
    assert all(call.result() for call in calls)


def test_a_connection_that_is_renewed_costs_nothing(replicas, tmp_path):
    """After a time, here one second, a client is told to connect anew: what is under way goes on over the old one."""
    configuration = load(CONFIGURATION)
    manager = requests_listener(configuration)["filter_chains"][0]["filters"][0]["typed_config"]
    manager["common_http_protocol_options"]["max_connection_duration"] = "1s"
    manager["drain_timeout"] = "0.2s"
    with (
        Envoy(tmp_path, [replica.ports for replica in replicas], configuration) as envoy,
        grpc.insecure_channel(envoy.url) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(iter([words("counter", "2")]))
        next(stream)
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < 4.0:
            ask_all(stub, 8)
        assert envoy.connections() >= 3
        assert not stream.done()
        for replica in replicas:
            replica.order("release")
        assert len(list(stream)) == 1


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def certify(folder: Path, name: str, authority: str) -> None:
    """A key and a certificate that `authority` has signed, whose own it is where the names are the same."""
    key, request, made = folder / f"{name}.key", folder / f"{name}.csr", folder / f"{name}.crt"
    common = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-subj", f"/CN={name}"]
    if name == authority:
        openssl("req", "-x509", "-days", 1, *common, "-out", made)
        return
    openssl("req", *common, "-out", request)
    (folder / "names").write_text(f"subjectAltName=IP:{LOOPBACK}")
    signer = ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key", "-CAcreateserial"]
    openssl("x509", "-req", "-days", 1, "-in", request, *signer, "-extfile", folder / "names", "-out", made)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with those of an authority, a server, a client, and a stranger who has signed for himself."""
    for name, authority in {"ca": "ca", "tls": "ca", "client": "ca", "stranger": "stranger"}.items():
        certify(tmp_path, name, authority)
    return tmp_path


@pytest.fixture
def secured(replicas: list[Replica], certificates: Path, tmp_path: Path) -> Iterator[Envoy]:
    """Envoy with TLS and client certificates, which lie elsewhere than in a container."""
    for name in ("tls-server.yaml", "tls-clients.yaml"):
        text = TLS_CONFIGURATION.with_name(name).read_text()
        (tmp_path / name).write_text(text.replace("/etc/attune-tls", str(certificates)))
    moved = TLS_CONFIGURATION.read_text().replace("/etc/envoy/", f"{tmp_path}/")
    with Envoy(tmp_path, [replica.ports for replica in replicas], yaml.safe_load(moved)) as envoy:
        yield envoy


def ask_secured(envoy: Envoy, folder: Path, name: str | None) -> None:
    """One call with the certificate of that name, or with none."""
    own = [(folder / f"{name}.{kind}").read_bytes() for kind in ("key", "crt")] if name else [None, None]
    credentials = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes(), *own)
    with grpc.secure_channel(envoy.url, credentials) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(floats(1.0), timeout=SOON_S)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
def test_with_tls_only_clients_with_a_certificate_are_answered(secured, certificates, replicas):
    ask_secured(secured, certificates, "client")
    assert sum(answered(replicas)) == 1
    for name in ("stranger", None):
        error = failure(lambda name=name: ask_secured(secured, certificates, name))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(secured.url) as channel:
        plain = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert failure(lambda: plain.ModelInfer(floats(1.0), timeout=SOON_S)).code() is grpc.StatusCode.UNAVAILABLE
    assert sum(answered(replicas)) == 1


@pytest.mark.slow
def test_a_stream_outlives_the_15_seconds_that_are_envoys_default(stub, replicas):
    stream = stub.ModelStreamInfer(iter([words("counter", "2")]))
    next(stream)
    time.sleep(20.0)
    for replica in replicas:
        replica.order("release")
    assert len(list(stream)) == 1
