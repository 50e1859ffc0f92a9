"""The embedded image, built and run: `pytest -m slow tests/integration/test_image.py` (minutes; 5 GB of disk).

It needs a docker daemon whose client builds with BuildKit: on Debian `apt-get install docker.io`, and `dockerd &`. The
base image is what BASE_IMAGE names, debian:bookworm-slim where a registry gives it, or else one that debootstrap makes
(as root). What this machine's pip is told, the build is told as well. With Prometheus' program here (Debian's package
prometheus) and docker compose (dev extra) it is also observed, as docker/compose.yaml says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
import soundfile as sf

from attune_client import AttuneClient
from attune_client.protocol.errors import SilentAudio
from attune_ensemble.serving.launcher.ports import free_ports
from tests.conftest import ROOT
from tests.containers import building_docker, compose_program
from tests.unit.test_observability import queries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the first one builds, perhaps from nothing

IMAGE, MADE_BASE, MADE_PROMETHEUS = "attune:test", "attune-test-base:bookworm", "attune-test-prometheus"
USUAL_BASE = "debian:bookworm-slim"
SPEECH = ROOT / "samples/sense_and_sensibility_0870.wav"
WORDS = "And Mr. John Dashwood had then leisure"
PACKAGES = "python3,python3-venv,libpython3.11,ca-certificates"
READY_S, PULL_S, BUILD_S = 180, 60, 1800

# As little as a container may be given: nothing to write to but /tmp, from which no program may be run.
LEAST = (
    "--read-only",
    "--tmpfs=/tmp:rw,noexec,nosuid,nodev",
    "--shm-size=64m",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=23456:23456",
)


@pytest.fixture(scope="module")
def docker() -> str:
    found = building_docker()
    if found is None:
        pytest.skip("there is no docker daemon, or no docker with BuildKit (Debian: docker.io, and dockerd started)")
    return found


def run(*command: str, timeout_s: float = 120, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **options)
    assert done.returncode == 0, f"{command[:3]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


def has(docker: str, *command: str, timeout_s: float = PULL_S) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return not subprocess.run([docker, *command], capture_output=True, timeout=timeout_s).returncode
    return False


@pytest.fixture(scope="module")
def base(docker: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image to build upon."""
    for image in filter(None, (os.environ.get("BASE_IMAGE"), MADE_BASE)):
        if has(docker, "image", "inspect", image):
            return image
    if has(docker, "pull", "--quiet", USUAL_BASE):
        return USUAL_BASE
    if os.getuid() or shutil.which("debootstrap") is None:
        pytest.skip("no registry is reached, and debootstrap is not here or not allowed to make a base image")
    root = tmp_path_factory.mktemp("base")
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), timeout_s=BUILD_S)
    packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    run(docker, "import", "-", MADE_BASE, stdin=packed.stdout, timeout_s=BUILD_S)
    assert packed.wait() == 0
    shutil.rmtree(root)
    return MADE_BASE


@pytest.fixture(scope="module")
def image(docker: str, base: str) -> str:
    """The image with the models that were exported here."""
    run(
        str(ROOT / "docker/build.sh"),
        "embedded",
        *("--tag", IMAGE, "--build-arg", f"BASE_IMAGE={base}", "--build-arg", "MODELS=context"),
        env=os.environ | {"DOCKER": docker, "PYTHON": sys.executable},
        timeout_s=BUILD_S,
    )
    return IMAGE


class Container:
    """One that runs; `url` is its gRPC, `health` its health port."""

    def __init__(self, docker: str, identity: str, url: str, health: str) -> None:
        self.docker, self.identity, self.url, self.health = docker, identity, url, health

    def inspect(self, what: str) -> str:
        return run(self.docker, "inspect", f"--format={what}", self.identity).stdout.strip()

    def inside(self, *command: str) -> str:
        return run(self.docker, "exec", self.identity, *command).stdout

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in run(self.docker, "logs", self.identity).stderr.splitlines()]

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.health}{path}", timeout=30) as answer:
            return answer.read().decode()

    def await_health(self) -> None:
        """Wait until docker itself finds it healthy."""
        deadline_s = time.monotonic() + READY_S
        while (state := self.inspect("{{.State.Status}} {{.State.Health.Status}}")) != "running healthy":
            assert "exited" not in state, run(self.docker, "logs", self.identity).stderr
            assert time.monotonic() < deadline_s, self.inspect("{{json .State.Health}}")
            time.sleep(0.5)


@pytest.fixture(scope="module")
def container(docker: str, image: str) -> Iterator[Container]:
    ports = free_ports()
    published = [f"--publish=127.0.0.1:{ports.grpc}:8001", f"--publish=127.0.0.1:{ports.http}:8000"]
    identity = run(docker, "run", "--detach", *LEAST, *published, image).stdout.strip()
    try:
        container = Container(docker, identity, f"127.0.0.1:{ports.grpc}", f"127.0.0.1:{ports.http}")
        container.await_health()
        yield container
    finally:
        run(docker, "rm", "--force", identity)


@pytest.fixture
def client(container: Container) -> Iterator[AttuneClient]:
    with AttuneClient(container.url, timeout_s=120) as client:
        yield client


def test_it_plays_what_make_run_plays(client):
    """The same clip, the same 30 s of music."""
    with client.play(SPEECH, duration_s=30, seed=7) as stream:
        assert stream.session.speech.transcript.startswith(WORDS)
        assert stream.session.speech.emotion
        sizes = [len(chunk) for chunk in stream]
    assert sum(sizes) == 30 * stream.session.sample_rate


def test_it_analyses_the_other_clips(client, samples):
    for path in samples:
        speech = client.analyse(path)
        assert speech.transcript
        assert all(1 <= value <= 5 for value in speech.vad)


def test_it_refuses_what_it_refuses_elsewhere(client, tmp_path):
    sf.write(tmp_path / "silence.wav", [0.0] * 16_000, 16_000)
    with pytest.raises(SilentAudio):
        client.analyse(tmp_path / "silence.wav")


def test_it_got_no_more_than_it_was_given(container):
    assert container.inside("id", "-u").strip() == "23456"
    status = dict(line.split(":\t") for line in container.inside("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert "noexec" in next(line for line in container.inside("mount").splitlines() if " on /tmp " in line)
    written = container.inside(
        "sh", "-c", "touch /opt/attune/x /models/x /x 2>/dev/null; ls /opt/attune/x /models/x /x || :"
    )
    assert written == ""


def test_no_compiler_and_no_installer_is_in_it(container):
    tools = "gcc cc g++ c++ clang ld as make pip pip3 curl wget git"
    found = container.inside("sh", "-c", f"for tool in {tools}; do command -v $tool; done; :")
    assert found == ""


def test_a_killed_model_comes_back_and_leaves_no_zombie(container, client):
    stub = "*python_backend_stub*[m]usic_prompt_0_0*"  # a pattern that does not fit the shell that looks for it
    kill = f"case $(tr '\\0' ' ' < $each/cmdline) in {stub}) kill -9 ${{each#/proc/}};; esac"
    container.inside("sh", "-c", f"for each in /proc/[0-9]*; do {kill}; done")
    deadline_s = time.monotonic() + 30
    while not any(event["event"] == "model_recovered" for event in container.events()):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert container.page("/readyz") == "ready\n"
    assert 'attune_model_restarts_total{model="music_prompt"} 1' in container.page("/metrics")
    with client.play(emotion="calm", duration_s=1, seed=7) as stream:
        assert stream.session.prompt.prompt
    states = container.inside("sh", "-c", "grep -h State: /proc/[0-9]*/status")
    assert "Z" not in states


def test_what_is_in_it_is_listed(docker, image, container):
    bill = json.loads(container.inside("cat", "/usr/share/attune/sbom.cdx.json"))
    purls = {component.get("purl", "") for component in bill["components"]}
    installed = container.inside("dpkg-query", "--show", "--showformat=${Package}\n").split()
    listed = {purl.partition("@")[0].removeprefix("pkg:deb/debian/") for purl in purls if purl.startswith("pkg:deb")}
    assert {name.replace("+", "%2B") for name in installed} == listed
    assert any(purl.startswith("pkg:pypi/onnxruntime@") for purl in purls)
    assert {"tritonserver", "whisper-base-ct2"} <= {component["name"] for component in bill["components"]}
    labels = json.loads(run(docker, "image", "inspect", "--format={{json .Config.Labels}}", image).stdout)
    assert labels["org.opencontainers.image.revision"] == run("git", "rev-parse", "HEAD", cwd=ROOT).stdout.strip()
    assert labels["music.attune.models"] == "context"


def test_it_names_nothing_of_the_machine_that_built_it(docker, image):
    """Neither the index nor the certificates that the build was handed."""
    history = run(docker, "history", "--no-trunc", "--format={{.CreatedBy}}", image).stdout
    words = run(sys.executable, "-m", "pip", "config", "list").stdout
    hosts = {
        urllib.parse.urlparse(word.strip("'")).hostname for word in words.replace("=", " ").split() if "://" in word
    }
    assert not [host for host in hosts if host and host in history]
    files = "/etc/pip.conf /etc/xdg/pip /wheels/* /run/secrets"
    left = run(docker, "run", "--rm", "--entrypoint=sh", image, "-c", f"ls -d {files} 2>/dev/null || :").stdout
    assert left == ""


def test_without_any_network_it_serves_all_the_same(docker, image):
    """And after SIGTERM it ends in order."""
    identity = run(docker, "run", "--detach", *LEAST, "--network=none", image, "--drain-seconds", "5").stdout.strip()
    try:
        container = Container(docker, identity, "", "")
        container.await_health()
        assert "music_therapy" in container.inside("attune", "models", "--json")
        run(docker, "stop", "--time=30", identity)
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert [event["event"] for event in container.events()][-3:] == ["draining", "drained", "stopped"]
    finally:
        run(docker, "rm", "--force", identity)


def test_where_models_are_missing_it_says_so(docker, image, tmp_path):
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [docker, "run", "--rm", *LEAST, f"--volume={tmp_path}:/models:ro", image],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == os.EX_CONFIG
    assert "there is no model repository at /models" in done.stderr


# --- With what observes it ---


@pytest.fixture(scope="module")
def prometheus_image(docker: str, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's Prometheus in the place of the published image, which a registry would have to give."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no prometheus here (Debian: prometheus)")
    context = tmp_path_factory.mktemp("prometheus")
    shutil.copy(program, context / "prometheus")
    (context / "Dockerfile").write_text(
        f"FROM {base}\nCOPY prometheus /bin/prometheus\nRUN mkdir /prometheus && chown 65534:65534 /prometheus\n"
        'USER 65534:65534\nENTRYPOINT ["/bin/prometheus"]\n'
    )
    run(docker, "build", "--quiet", f"--tag={MADE_PROMETHEUS}", str(context), timeout_s=BUILD_S, env=with_buildkit())
    return MADE_PROMETHEUS


def with_buildkit() -> dict[str, str]:
    return os.environ | {"DOCKER_BUILDKIT": "1"}


@pytest.fixture(scope="module")
def composed(docker: str, image: str, prometheus_image: str) -> Iterator[tuple[str, str]]:
    """Attune and Prometheus, started by docker/compose.yaml: the addresses of both."""
    program = compose_program()
    if program is None:
        pytest.skip("docker compose is not installed (dev extra)")
    attune, others = free_ports(), free_ports()
    environment = os.environ | {
        "ATTUNE_CPU_IMAGE": image,
        "PROMETHEUS_IMAGE": prometheus_image,
        "ATTUNE_GRPC_PORT": str(attune.grpc),
        "ATTUNE_HTTP_PORT": str(attune.http),
        "PROMETHEUS_PORT": str(others.http),
    }
    command = [*program, "--project-name=attune-test", f"--file={ROOT / 'docker/compose.yaml'}", "--profile=cpu"]
    try:
        run(
            *command,
            "up",
            "--detach",
            "--no-build",
            "--wait",
            "attune-cpu",
            "prometheus",
            env=environment,
            timeout_s=300,
        )
        yield f"127.0.0.1:{attune.grpc}", f"127.0.0.1:{others.http}"
    finally:
        run(*command, "down", "--volumes", env=environment, timeout_s=300)


def query(prometheus: str, expression: str) -> list[dict[str, object]]:
    words = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/query?{words}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def test_prometheus_sees_what_the_dashboard_shows(composed):
    """Requests before its first look and after it: rates are made of both."""
    url, prometheus = composed
    deadline_s = time.monotonic() + 120

    def until(expression: str) -> None:
        while not query(prometheus, expression):
            assert time.monotonic() < deadline_s, expression
            time.sleep(1.0)

    with AttuneClient(url, timeout_s=120) as client:
        for least in (1, 2):
            client.analyse(SPEECH)
            with client.play(emotion="calm", duration_s=2, seed=7) as stream:
                list(stream)
            until(f'attune_guard_first_audio_seconds_count{{model="music_therapy"}} >= {least}')
    empty = [
        title
        for title, expression in queries()
        if not query(prometheus, expression.replace("$__rate_interval", "2m").replace("$instance", ".*"))
    ]
    # Of what is not here, or does not happen: errors, restarts, another engine, a GPU. What waits, waits at once.
    assert set(empty) <= {
        *("Errors by code", "Cancelled by clients", "Restarts", "Slots used"),
        *("Its slots", "Its seconds of music a second", "Its first audio, and its queue", "Its steps"),
        *("Use", "Memory", "Power"),
    }
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/alerts", timeout=30) as answer:
        assert json.load(answer)["data"]["alerts"] == []
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/rules", timeout=30) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
