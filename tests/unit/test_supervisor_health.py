"""Health, metrics, events, and what a service manager is told: `pytest tests/unit/test_supervisor_health.py`."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.serving.guard.measures import Histogram
from attune_ensemble.serving.launcher.ports import LOOPBACK, free_port
from attune_ensemble.serving.supervisor import health as health_module
from attune_ensemble.serving.supervisor import metrics as metrics_module
from attune_ensemble.serving.supervisor.events import Events
from attune_ensemble.serving.supervisor.health import Health, is_for_us
from attune_ensemble.serving.supervisor.metrics import exposition
from attune_ensemble.serving.supervisor.notify import Notifier
from attune_ensemble.serving.supervisor.policy import Phase, Status

ROOT = Path(__file__).parents[2]
READY = Status(Phase.SERVING, "")
DEGRADED = Status(Phase.SERVING, "degraded: model valence", ("valence",), {"valence": 2}, 1)
MODELS = ("arousal_dominance", "valence")


class Subject:
    status = READY
    alive = True

    def is_alive(self):
        return self.alive

    def models(self):
        return MODELS

    def metrics(self):
        return "attune_ready 1\n"


@pytest.fixture
def subject():
    return Subject()


@pytest.fixture
def port(subject):
    health = Health(LOOPBACK, free_port(), subject)
    health.start()
    yield health._address[1]
    health.stop()
    health.stop()


def ask(port, path="/livez", method="GET", *, body=None, **headers):
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def test_it_answers_at_an_address_of_ipv6(subject):
    health = Health("::1", free_port(), subject)
    try:
        health.start()
    except ServerUnavailable:
        pytest.skip("this machine has no IPv6")
    try:
        connection = http.client.HTTPConnection("::1", health._address[1], timeout=10)
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() == b"ready\n"
        connection.close()
    finally:
        health.stop()


@pytest.mark.parametrize("path", ["/livez", "/v2/health/live"])
def test_it_lives_as_long_as_the_supervisor_is_at_work(port, subject, path):
    subject.status = Status(Phase.STARTING, "starting")
    assert ask(port, path)[:2] == (200, "alive\n")
    subject.alive = False
    assert ask(port, path)[0] == 503


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready", "/readyz?verbose"])
def test_it_is_ready_while_every_model_is(port, subject, path):
    assert ask(port, path)[:2] == (200, "ready\n")
    subject.status = DEGRADED
    assert ask(port, path)[:2] == (503, "degraded: model valence\n")
    subject.status = Status(Phase.DRAINING, "draining: …")
    assert ask(port, path)[:2] == (503, "draining: …\n")


def test_the_status_tells_what_has_happened(port, subject):
    subject.status = DEGRADED
    status, text, headers = ask(port, "/status")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(text) == {
        "alive": True,
        "ready": False,
        "phase": "serving",
        "reason": "degraded: model valence",
        "server_restarts": 1,
        "models": {
            "arousal_dominance": {"ready": True, "restarts": 0},
            "valence": {"ready": False, "restarts": 2},
        },
    }


def test_metrics_are_served_as_prometheus_wants_them(port):
    status, text, headers = ask(port, "/metrics")
    assert (status, text) == (200, "attune_ready 1\n")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_head_is_get_without_the_text(port):
    status, text, headers = ask(port, "/readyz", "HEAD")
    assert (status, text, headers["Content-Length"]) == (200, "", "6")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "BREW"])
def test_nothing_but_looking_is_allowed(port, method):
    status, _, headers = ask(port, method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


def test_there_are_no_other_pages(port):
    for path in ("/", "/livez/", "/../etc/passwd", "/v2/models/valence/infer"):
        assert ask(port, path)[0] == 404


@pytest.mark.parametrize("headers", [{"Content-Length": "1"}, {"Transfer-Encoding": "chunked"}])
def test_no_body_is_taken(port, headers):
    assert ask(port, **headers)[0] == 413


def test_a_name_that_was_made_to_point_here_is_told_nothing(port):
    status, text, _ = ask(port, "/status", Host=f"attacker.example:{port}")
    assert status == 421
    assert "valence" not in text
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert ask(port, Host=host)[0] == 200


@pytest.mark.parametrize(
    ("hosts", "bound", "expected"),
    [
        ([], "127.0.0.1", True),
        (["localhost"], "127.0.0.1", True),
        (["LOCALHOST:8000"], "127.0.0.1", True),
        (["127.0.0.2:8000"], "127.0.0.1", True),
        (["[::1]:8000"], "127.0.0.1", True),
        (["localhost.attacker.example"], "127.0.0.1", False),
        (["127.0.0.1.attacker.example"], "127.0.0.1", False),
        (["localhost", "localhost"], "127.0.0.1", False),
        ([""], "127.0.0.1", False),
        (["10.0.0.7"], "127.0.0.1", False),
        (["10.0.0.7:8000"], "10.0.0.7", True),
        (["10.0.0.7:8000"], "0.0.0.0", True),
        (["0.0.0.0"], "127.0.0.1", False),
        (["attacker.example"], "0.0.0.0", False),
    ],
)
def test_who_is_meant_by_a_host_header(hosts, bound, expected):
    assert is_for_us(hosts, bound) is expected


def test_whoever_says_nothing_or_little_keeps_nobody_out(port):
    slow = [socket.create_connection((LOOPBACK, port)) for _ in range(2 * health_module._MAX_CONNECTIONS)]
    for connection in slow:
        with contextlib.suppress(OSError):  # the oldest have been ended
            connection.send(b"G")
    assert ask(port)[0] == 200
    for connection in slow:
        connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"GET /livez HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /<script>\r\n\r\n", b"GET\r\n\r\n"],
)
def test_what_is_no_request_is_answered_as_http_without_what_it_said(port, sent):
    with socket.create_connection((LOOPBACK, port)) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 ")
    assert answer.split()[1] in (b"400", b"404", b"414", b"421", b"505")
    assert b"script" not in answer
    assert b"<" not in answer


def test_a_port_in_use_is_named(subject):
    with socket.create_server((LOOPBACK, 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(ServerUnavailable, match=f"port {taken} of 127.0.0.1 cannot be used"):
            Health(LOOPBACK, taken, subject).start()


# --- metrics ---


@pytest.fixture
def triton():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'# TYPE nv_gauge gauge\nnv_gauge{model="valence"} 3\n')

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"{LOOPBACK}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


SECONDS = Histogram((0.1, 1.0))
for each_s in (0.05, 0.1, 0.5, 7.0):
    SECONDS.add(each_s)
GUARD = {
    'attune_guard_requests_total{model="a",outcome="b"}': 2.0,
    "attune_guard_load": 1.5,
    'attune_guard_requests_total{model="a",outcome="a"}': 1e12,
    **dict(SECONDS.samples("attune_guard_request_seconds", 'model="a"')),
}


def test_the_metrics_of_all_three_are_one_text(triton):
    lines = exposition(triton, GUARD, DEGRADED, MODELS).splitlines()
    assert lines[:2] == ["# TYPE nv_gauge gauge", 'nv_gauge{model="valence"} 3']
    at = lines.index("# TYPE attune_guard_requests_total counter")
    assert set(lines[at + 1 : at + 3]) == {
        'attune_guard_requests_total{model="a",outcome="a"} 1e+12',
        'attune_guard_requests_total{model="a",outcome="b"} 2',
    }
    assert lines[at - 1].startswith("# HELP attune_guard_requests_total Requests that ended")
    assert lines[lines.index("# TYPE attune_guard_load gauge") + 1] == "attune_guard_load 1.5"
    assert 'attune_model_ready{model="valence"} 0' in lines
    assert 'attune_model_ready{model="arousal_dominance"} 1' in lines
    assert 'attune_model_restarts_total{model="valence"} 2' in lines
    assert {"attune_ready 0", "attune_server_up 1", "attune_server_restarts_total 1"} <= set(lines)
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert all(re.fullmatch(r"# .*|[a-z_]+(\{.*\})? [-+.e0-9]+", line) for line in lines)


def test_a_histogram_is_one_family_with_its_buckets_in_order(triton):
    lines = exposition(None, GUARD, READY, MODELS).splitlines()
    at = lines.index("# TYPE attune_guard_request_seconds histogram")
    assert lines[at + 1 : at + 6] == [
        'attune_guard_request_seconds_bucket{model="a",le="0.1"} 2',
        'attune_guard_request_seconds_bucket{model="a",le="1"} 3',
        'attune_guard_request_seconds_bucket{model="a",le="+Inf"} 4',
        'attune_guard_request_seconds_sum{model="a"} 7.65',
        'attune_guard_request_seconds_count{model="a"} 4',
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_finds_nothing_to_say_about_them():
    text = exposition(None, GUARD, DEGRADED, MODELS)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_how_full_the_shared_memory_is(tmp_path, monkeypatch):
    samples = dict(line.split() for line in exposition(None, {}, READY, ()).splitlines() if line[0] != "#")
    used, size = (float(samples[f"attune_shared_memory_{what}_bytes"]) for what in ("used", "size"))
    assert 0 <= used <= size
    assert size > 0
    monkeypatch.setattr(metrics_module, "_SHARED_MEMORY", str(tmp_path / "none"))
    assert "attune_shared" not in exposition(None, {}, READY, ())


@pytest.mark.parametrize("url", [None, f"{LOOPBACK}:1"])
def test_without_a_server_there_are_still_ours(url):
    lines = exposition(url, {}, Status(Phase.RESTARTING, "…"), MODELS).splitlines()
    assert {"attune_ready 0", "attune_server_up 0", 'attune_model_ready{model="valence"} 0'} <= set(lines)


# --- events ---


def events_of(*calls, as_json=True) -> list[str]:
    stream = io.StringIO()
    events = Events(stream, as_json=as_json)
    for event, fields in calls:
        events.tell(event, **fields)
    events.close()
    return stream.getvalue().splitlines()


def test_an_event_is_one_line_of_json():
    fields = {
        "model": "valence",
        "seconds": 1.23456,
        "log": Path("/log"),
        "error": ValueError("a\nb"),
        "lost": {"b", "a"},
    }
    [line] = events_of(("model_died", fields))
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {
        "event": "model_died",
        "model": "valence",
        "seconds": 1.235,
        "log": "/log",
        "error": "a\nb",
        "lost": ["a", "b"],
    }


def test_an_event_is_one_line_of_text():
    first, second = events_of(("ready", {"grpc": "here", "reason": "a\nb"}), ("stopped", {}), as_json=False)
    assert re.sub(r"^\S+ ", "", first) == 'ready: grpc=here reason="a\\nb"'
    assert re.sub(r"^\S+ ", "", second) == "stopped"


def test_a_reader_that_does_not_read_stops_nobody():
    reading, writing = os.pipe()
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
        events = Events(stream, as_json=True)
        started_s = time.monotonic()
        for _ in range(3000):
            events.tell("refused", reason="x" * 200)
        assert time.monotonic() - started_s < 5
        os.close(reading)
        events.close()


def test_a_stream_that_is_closed_is_no_error():
    stream = io.StringIO()
    stream.close()
    events = Events(stream, as_json=False)
    events.tell("ready")
    events.close()


# --- the service manager ---


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


def test_a_service_manager_is_told(manager, tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000", "HOME": "/"}
    notifier = Notifier(environment)
    assert environment == {"HOME": "/"}, "no process that is started may speak for this one"
    notifier.ready()
    notifier.status("degraded:\nmodel valence")
    for _ in range(3):
        notifier.alive()
    time.sleep(0.11)
    notifier.alive()
    notifier.stopping()
    told = [manager.recv(100) for _ in range(5)]
    assert told == [b"READY=1", b"STATUS=degraded: model valence", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_an_abstract_socket_is_found():
    name = f"attune-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert receiver.recv(100) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere"}, {"WATCHDOG_USEC": "soon"}])
def test_without_a_service_manager_nothing_happens(environment):
    notifier = Notifier(environment)
    notifier.ready()
    notifier.alive()


def test_the_watchdog_of_another_process_is_not_fed(manager, tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"}
    notifier = Notifier(environment)
    notifier.alive()
    notifier.ready()
    assert manager.recv(100) == b"READY=1"


UNIT = ROOT / "deploy" / "systemd" / "attune.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    """With this environment's program in the place of the one that is named."""
    installed = re.search(r"^ExecStart=(\S+)", UNIT.read_text(), flags=re.MULTILINE)[1]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(installed, str(Path(sys.executable).with_name("attune"))))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    about = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert done.returncode == 0, done.stderr
    assert not about
    unit.write_text(unit.read_text() + "\n[Service]\nWatchdogMilk=3\n")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "WatchdogMilk" in done.stderr, "or a fault would not be found"


def test_the_unit_starts_what_there_is():
    from attune_ensemble.serving.supervisor.commands import serve

    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    _, command, *arguments = settings["ExecStart"].split()
    assert command == "serve"
    parsed = serve.make_context("serve", arguments).params
    assert parsed["log_format"] == "json"
    assert float(settings["TimeoutStopSec"]) > parsed["drain_seconds"] + 15
    assert settings["Type"] == "notify"
    assert settings["KillMode"] == "mixed", "a signal for every process would end the models before their requests"
    assert settings["RestartPreventExitStatus"] == str(os.EX_CONFIG)
