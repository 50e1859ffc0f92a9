"""The launcher and `attune serve`, without starting a server: `pytest tests/unit/test_serving_launcher.py`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import attune_weights
from attune_client.cli import main
from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import GPU, PROFILES
from attune_ensemble.serving.launcher import container as container_module
from attune_ensemble.serving.launcher import interpreter, layout
from attune_ensemble.serving.launcher import server as server_module
from attune_ensemble.serving.launcher.container import container_command
from attune_ensemble.serving.launcher.log_file import is_in_use, open_log
from attune_ensemble.serving.launcher.ports import LOOPBACK, Ports, authority, free_ports, require_free
from attune_ensemble.serving.launcher.processes import Process, process_of, state_of
from attune_ensemble.serving.launcher.server import Server
from attune_ensemble.serving.own_server import OWN_URL
from attune_ensemble.serving.repository import check_repository
from attune_ensemble.serving.scratch import Scratch
from attune_ensemble.serving.supervisor.commands import default_log, serve

ROOT = Path(__file__).parents[2]


def attune(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


GRAPH_CONFIG = 'name: "valence"\nbackend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n'
ENSEMBLE_CONFIG = 'name: "all"\nplatform: "ensemble"\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One ONNX model, whose file is not there, and an ensemble, which needs none."""
    for name, text in (("valence", GRAPH_CONFIG), ("all", ENSEMBLE_CONFIG)):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(text)
    return tmp_path


def test_the_layout_is_what_the_server_wants(tmp_path):
    for _ in range(2):  # the second time changes nothing
        built = layout.build_layout(tmp_path, layout.find_package())
    python = built.backend_dir / "python"
    assert os.access(python / "triton_python_backend_stub", os.X_OK)
    assert (built.backend_dir / "onnxruntime" / "model.py").is_file()
    # The backend's RPATH, followed from where it lies.
    libraries = python / ".." / ".." / ".." / ".." / "nvidia_pytriton.libs"
    assert any(libraries.resolve().glob("libcudart*"))
    # The server refuses a backend library that a link leads out of its folder.
    assert not (python / "libtriton_python.so").is_symlink()


def test_an_image_has_the_layout_already(tmp_path):
    """Its temporary folder may be one from which no program may be run."""
    package, image, scratch = layout.find_package(), tmp_path / "image", tmp_path / "scratch"
    command = [sys.executable, "-m", layout.__name__, str(image)]
    subprocess.run(command, check=True, timeout=60)
    found = layout.packaged_layout(scratch, package, {layout.LAYOUT_VARIABLE: str(image)})
    assert found == layout.build_layout(image, package)
    assert not scratch.exists()
    with pytest.raises(ServerUnavailable, match=f"{layout.LAYOUT_VARIABLE} names .*elsewhere, where no server was"):
        layout.packaged_layout(scratch, package, {layout.LAYOUT_VARIABLE: str(tmp_path / "elsewhere")})
    assert layout.packaged_layout(scratch, package, {}).backend_dir.is_relative_to(scratch)


def test_this_python_comes_first_in_the_environment():
    environment = layout.server_environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/usr/lib", "HOME": "/home/me"})
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    first, second = environment["LD_LIBRARY_PATH"].split(":")
    assert list(Path(first).glob(f"{interpreter.library_name()}*"))
    assert second == "/usr/lib"
    assert 1 <= int(environment["OMP_NUM_THREADS"]) <= 4
    assert environment["HOME"] == "/home/me"


def test_the_server_gives_large_pieces_back_and_its_models_take_that_limit_away(tmp_path):
    environment = layout.server_environment({})
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "131072"
    assert layout.server_environment({"MALLOC_MMAP_THRESHOLD_": "1"})["MALLOC_MMAP_THRESHOLD_"] == "1"
    built = layout.build_layout(tmp_path, layout.find_package())
    utils = (built.backend_dir / "python" / "triton_python_backend_utils.py").read_text()
    assert "allocation.restore()" in utils
    # A megabyte that was given back and is asked for again: mapped anew each time, or from the heap.
    program = (
        "import resource; from attune_ensemble.serving import allocation; {}"
        "import numpy as np; usage = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = usage()\n"
        "for _ in range(100): np.ones(2**20, np.uint8)\n"
        "print(usage() - before)"
    )
    faults = [
        int(subprocess.check_output([sys.executable, "-c", program.format(begin)], env=environment))
        for begin in ("", "allocation.restore();")
    ]
    assert faults[0] > 10 * faults[1]


def test_an_explicit_number_of_threads_is_kept():
    assert layout.server_environment({"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_a_server_that_cannot_be_fetched_says_why(monkeypatch):
    def fetch(name):
        raise attune_weights.WeightsError(f"cannot fetch '{name}': no connection")

    monkeypatch.setattr(attune_weights, "fetch", fetch)
    with pytest.raises(ServerUnavailable, match="cannot fetch 'tritonserver': no connection"):
        layout.find_package()


def test_the_server_has_a_stub_for_every_python_that_attune_supports():
    stubs = layout.find_package().stub.parents[1]
    (oldest, newest) = interpreter.OLDEST, interpreter.NEWEST
    for minor in range(oldest[1], newest[1] + 1):
        assert os.access(stubs / f"3.{minor}" / "triton_python_backend_stub", os.X_OK)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{oldest[1]},<3.{newest[1] + 1}"


def test_a_python_without_a_stub_is_refused(monkeypatch):
    monkeypatch.setattr(layout.sysconfig, "get_python_version", lambda: "3.14")
    with pytest.raises(ServerUnavailable, match=r"no stub for Python 3\.14"):
        layout.find_package()


def test_the_bundled_libpython_gives_way_to_this_interpreters(tmp_path, monkeypatch):
    """The stub for 3.13 would load the library of the machine that built the wheel."""
    libraries, root = tmp_path / "libs", tmp_path / "root"
    libraries.mkdir()
    minor = sys.version_info.minor
    for name in (f"libpython3-419a3a08.{minor}.so.1.0", "libcudart-09529672.so.12"):
        (libraries / name).touch()
    layout._link_libraries(libraries, root)
    own = (root / f"libpython3-419a3a08.{minor}.so.1.0").resolve()
    assert own == interpreter.find_library().resolve()
    assert (root / "libcudart-09529672.so.12").resolve() == libraries / "libcudart-09529672.so.12"


def test_a_python_without_its_shared_library_names_the_package(monkeypatch):
    monkeypatch.setattr(interpreter, "find_library", lambda: None)
    monkeypatch.setattr(interpreter, "_is_known_to_apt", lambda package: False)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(ServerUnavailable, match=rf"apt-get install libpython{version}"):
        layout.server_environment({})


def test_another_platform_is_refused(monkeypatch):
    monkeypatch.setattr(layout.platform, "machine", lambda: "arm64")
    with pytest.raises(ServerUnavailable, match="runs on Linux x86_64 only"):
        layout.find_package()


def test_a_port_in_use_is_named():
    with socket.create_server((LOOPBACK, 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(ServerUnavailable, match=f"port {taken} of 127.0.0.1 cannot be used"):
            require_free(taken)
    require_free(taken)


def test_a_port_of_ipv6_is_free_or_taken_alike():
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        taken = listener.getsockname()[1]
        with pytest.raises(ServerUnavailable, match=f"port {taken} of ::1 cannot be used"):
            require_free(taken, "::1")
    require_free(taken, "::1")
    for port in (free := free_ports("::1")).http, free.grpc:
        require_free(port, "::1")
    assert authority("::1", taken) == f"[::1]:{taken}"


def test_a_missing_model_file_is_named(repository):
    with pytest.raises(ServerUnavailable, match=r"(?s)run `attune export`.*valence/1/model\.onnx"):
        check_repository(repository)
    (repository / "valence" / "1" / "model.onnx").touch()
    check_repository(repository)
    (repository / "all" / "1").rmdir()
    with pytest.raises(ServerUnavailable, match="all/1"):
        check_repository(repository)
    check_repository(repository, models=("valence",))


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(ServerUnavailable, match="there is no model repository at"):
        check_repository(tmp_path)


def test_a_broken_configuration_is_named(repository):
    (repository / "valence" / "config.pbtxt").write_text("name = valence")
    with pytest.raises(ServerUnavailable, match=r"valence/config\.pbtxt is not a model configuration"):
        check_repository(repository)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name = valence"])
def test_a_configuration_that_is_no_text_is_one_line(repository, content):
    (repository / "valence" / "config.pbtxt").write_bytes(content)
    result = attune("serve", "--free-ports", "--repository", repository)
    assert result.exit_code == os.EX_CONFIG
    *events, told = result.stderr.splitlines()
    assert told.startswith("Error: ")
    assert "valence/config.pbtxt is not a model configuration" in told
    assert [json.loads(line)["event"] for line in events] == ["starting", "gave_up", "stopped"]


def test_outside_a_clone_serve_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--profile", "gpu"]):
        result = attune("serve", *options)
        assert result.exit_code == os.EX_CONFIG
        assert "in a clone of Attune's sources" in result.stderr
        assert "--repository DIR" in result.stderr


def test_an_address_of_another_machine_is_one_line(repository):
    result = attune("serve", "--repository", repository, "--host", "192.0.2.1", "--private-network", "--free-ports")
    assert result.exit_code == os.EX_UNAVAILABLE
    assert result.stderr == "Error: nothing can listen at 192.0.2.1 (cannot assign requested address)\n"


def test_a_log_that_could_not_be_begun_is_not_held(tmp_path, monkeypatch):
    def full(file, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("attune_ensemble.serving.launcher.log_file._begin_anew", full)
    with pytest.raises(ServerUnavailable, match="No space left") as caught:
        open_log(tmp_path / "log")
    assert caught.value.__cause__ is not None, "which keeps what it passed, the file among it"
    assert not is_in_use(tmp_path / "log")


@pytest.mark.parametrize(("unload_s", "left_s"), [(0.0, 120.0), (100.0, 20.0), (119.9, 1.0)])
def test_a_model_is_brought_back_within_one_limit(tmp_path, monkeypatch, unload_s, left_s):
    clock = SimpleNamespace(s=0.0)
    limits = []

    class Controlling:
        def unload(self, model, timeout_s):
            limits.append(timeout_s)
            clock.s += unload_s

        def load(self, model, timeout_s):
            limits.append(timeout_s)

    monkeypatch.setattr(server_module, "Control", lambda url: contextlib.nullcontext(Controlling()))
    monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=lambda: clock.s))
    server = Server(tmp_path, log_file=tmp_path / "log")
    monkeypatch.setattr(Server, "grpc_url", "nobody:1")
    monkeypatch.setattr(server, "_close_regions", lambda: None)
    server.reload("valence", 120.0)
    assert limits == [120.0, pytest.approx(left_s)]


def test_a_program_that_is_not_there_is_told_before_the_models_are_loaded(repository):
    result = attune("serve", "--repository", repository, "--", "no-such-program", "-x")
    assert result.exit_code == 127
    assert result.stderr == "Error: no-such-program: there is no such program\n"


@pytest.fixture
def server(tmp_path, repository):
    """A server that can be launched as far as its folders and its log go."""
    (repository / "valence" / "1" / "model.onnx").touch()
    return lambda log: Server(repository, log_file=tmp_path / log)


@pytest.mark.parametrize("log", ["config.pbtxt/server.log", "."])
def test_a_log_that_cannot_be_written_is_one_line(server, repository, log):
    with pytest.raises(ServerUnavailable, match=r"the log .* cannot be written \(.*\): choose another with --log-file"):
        server(repository / "valence" / log).start()


@pytest.mark.parametrize("folder", ["nowhere", "valence/config.pbtxt"])
def test_an_unusable_temporary_folder_is_one_line(server, repository, monkeypatch, folder):
    monkeypatch.setattr("tempfile.tempdir", str(repository / folder))
    with pytest.raises(ServerUnavailable, match=r"temporary folder .* cannot be used .*: name another one in TMPDIR"):
        server("server.log").start()


def test_without_any_temporary_folder_serve_fails_in_one_line(server, repository, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(ServerUnavailable, match="No usable temporary directory"):
        server("server.log").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_full_temporary_folder_is_one_line_and_left_empty(server, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with pytest.raises(ServerUnavailable, match="No space left on device"):
            server("server.log").start()
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_log_belongs_to_one_server(tmp_path):
    path = tmp_path / "new" / "server.log"
    with open_log(path) as first:
        first.write(b"first")
        assert is_in_use(path)
        with pytest.raises(ServerUnavailable, match="is the log of a server that runs"):
            open_log(path)
        assert path.read_bytes() == b"first"
    assert not is_in_use(path)
    with open_log(path) as second:
        second.write(b"second")
    assert path.read_bytes() == b"second"
    assert path.with_name("server.log.1").read_bytes() == b"first"


def test_a_log_is_held_by_the_processes_that_write_to_it(tmp_path):
    path = tmp_path / "server.log"
    with open_log(path) as log:
        writer = subprocess.Popen(["sleep", "60"], stdout=log)
    assert is_in_use(path)
    writer.kill()
    writer.wait()
    assert not is_in_use(path)


def test_a_pipe_that_standard_output_is_may_be_the_log(repository):
    """As in a container: /dev/stdout leads to what has no path of its own."""
    program = (
        "import sys; from pathlib import Path; from attune_ensemble.serving.launcher.log_file import open_log;"
        "from attune_ensemble.serving.launcher.server import Server;"
        "server = Server(Path(sys.argv[1]), log_file=Path('/dev/stdout')); open_log(server.log_file).write(b'said');"
        "sys.stderr.write(server._log_excerpt())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(repository)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "said", done.stderr
    assert done.stderr == "(the log went to /dev/stdout)"


def test_a_device_is_nobodys_log():
    with open_log(Path(os.devnull)), open_log(Path(os.devnull)):
        assert not is_in_use(Path(os.devnull))


def test_a_second_server_takes_another_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_log(Ports(grpc=9001)) == Path("out/server.log")
    with open_log(Path("out/server.log")):
        assert default_log(Ports(grpc=9001)) == Path("out/server-9001.log")


def test_serve_reports_a_missing_file_in_one_message(repository):
    result = attune("serve", "--free-ports", "--repository", repository)
    assert result.exit_code == os.EX_CONFIG
    assert "attune export" in result.output
    assert "Traceback" not in result.output


def command_of(server: Server) -> list[str]:
    server._scratch = Scratch(server.name)
    try:
        return server._command(layout.ServerLayout(Path("tritonserver")))
    finally:
        server._scratch.remove()


def test_the_server_is_reached_by_this_user_alone(server):
    ours = server("server.log")
    words = command_of(ours)
    addresses = [word for word in words if "-address=" in word]
    assert addresses == [f"--grpc-address={ours.grpc_url.removesuffix(':1')}", "--metrics-address=127.0.0.1"]
    assert {"--grpc-port=1", "--allow-http=false", "--model-control-mode=explicit", "--load-model=*"} <= set(words)
    assert not any(word.startswith("--model-config-name") for word in words)


def test_another_profile_is_served_with_its_configurations(repository, tmp_path):
    server = Server(repository, log_file=tmp_path / "server.log", profile=GPU, models=("valence",))
    words = command_of(server)
    assert {"--model-config-name=gpu", "--load-model=valence"} <= set(words)
    assert not any(word.startswith("--backend-directory") for word in words), "the image has its own"


def test_another_profile_needs_a_server_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnavailable, match="gpu is served by the tritonserver of NVIDIA's image"):
        layout.image_layout(GPU)
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    assert layout.image_layout(GPU).binary == binary
    environment = layout.image_environment({"PYTHONPATH": "/opt"})
    assert environment["PYTHONPATH"] == "/opt"
    assert environment.items() >= (NO_TELEMETRY | OFFLINE).items()


def test_a_temporary_folder_with_a_long_path_is_one_line(server, tmp_path, monkeypatch):
    """A socket's path may have 107 bytes."""
    folder = tmp_path / ("ä" * 40)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(ServerUnavailable, match=r"has \d+ bytes, and a socket's may have 107: .* in TMPDIR"):
        server("server.log").start()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("profile", ["gpu", "tensorrt"])
def test_other_profiles_print_a_container_command(profile, repository):
    result = CliRunner().invoke(serve, ["--profile", profile, "--repository", str(repository), "--grpc-port", "9001"])
    assert result.exit_code == 0
    assert result.stdout.strip() == container_command(PROFILES[profile], repository, Ports(grpc=9001))
    assert result.stderr.startswith("not to be served yet: there is no profile")
    build, run = (shlex.split(line) for line in result.stdout.split(" && "))
    assert build[:3] == ["DOCKER_BUILDKIT=1", "docker", "build"]
    assert f"--file={ROOT / 'docker' / 'gpu.Dockerfile'}" in build
    assert build[-1] == str(ROOT)
    assert run[:2] == ["docker", "run"]
    assert f"--volume={repository}:/models:ro" in run
    assert {"--publish=127.0.0.1:9001:8001", "--publish=127.0.0.1:8000:8000"} <= set(run)
    image = run.index(container_module.IMAGE)
    assert f"--tag={container_module.IMAGE}" in build
    parsed = served_by("gpu", run[image + 1 :])
    assert parsed["profile"] == profile
    assert parsed["host"] == "0.0.0.0", "the port is published on the outside"


def served_by(name: str, more: list[str]) -> dict[str, object]:
    """What `attune serve` understands of the entry point of an image, and what is said after the image's name."""
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text().replace("\\\n", " ")
    [entry] = [line for line in text.splitlines() if line.startswith("ENTRYPOINT")][-1:]
    words = json.loads(entry.removeprefix("ENTRYPOINT"))
    return serve.make_context("serve", [*words[words.index("serve") + 1 :], *more]).params


def test_the_container_command_needs_the_sources_that_it_builds_from(monkeypatch, repository, tmp_path):
    monkeypatch.setattr(container_module, "_ROOT", tmp_path)
    result = attune("serve", "--profile", "gpu", "--repository", repository)
    assert result.exit_code == 1
    assert "run this in a clone's environment" in result.output


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "here"])
def test_the_packaged_server_is_served_on_loopback_only(repository, host):
    result = attune("serve", "--repository", repository, "--host", host)
    assert result.exit_code == os.EX_CONFIG
    assert "--host takes an address" in result.stderr or "at the loopback interface only" in result.stderr


def test_the_packaged_server_is_served_on_a_network_that_is_said_to_be_private(repository):
    """What is refused then is its repository, which lacks a file."""
    result = attune("serve", "--repository", repository, "--host", "0.0.0.0", "--private-network", "--free-ports")
    assert "the model repository is not complete" in result.stderr
    result = attune("serve", "--repository", repository, "--host", "here", "--private-network")
    assert "--host takes an address" in result.stderr


STUBBORN = "trap 'echo {line}' TERM; echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("line", "at_least_s", "at_most_s"),
    [("All models are stopped, unloading models", 0.3, 1.5), ("Found 1 model versions in flight", 2.0, 4.0)],
)
def test_a_model_that_never_unloads_is_not_waited_for_as_long_as_a_request(
    tmp_path, monkeypatch, line, at_least_s, at_most_s
):
    monkeypatch.setattr(server_module, "_UNLOAD_S", 0.3)
    monkeypatch.setattr(server_module, "_KILL_GRACE_S", 0.0)
    log_file = tmp_path / "log"
    server = Server(tmp_path, log_file=log_file, exit_timeout_s=2)
    with log_file.open("wb") as log:
        process = subprocess.Popen(["sh", "-c", STUBBORN.format(line=line)], stdout=log, start_new_session=True)
    while not log_file.stat().st_size:
        time.sleep(0.01)
    started_s = time.monotonic()
    server._end(process)
    assert at_least_s <= time.monotonic() - started_s <= at_most_s
    assert process.returncode == -signal.SIGKILL


def test_the_models_are_told_where_their_server_is_whatever_was_inherited(server, monkeypatch):
    told = {}

    def start(command, *, env, **options):
        told.update(env)
        raise ServerUnavailable("far enough")

    monkeypatch.setenv(OWN_URL, "127.0.0.1:1")  # of the server that this one was started from
    monkeypatch.setattr(server_module, "Janitor", lambda *arguments: None)
    monkeypatch.setattr(server_module.subprocess, "Popen", start)
    starting = server("server.log")
    with pytest.raises(ServerUnavailable, match="far enough"):
        starting.start()
    assert told[OWN_URL] == starting.grpc_url


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def test_the_state_of_a_process_is_read():
    child = subprocess.Popen(["sleep", "60"])
    process = process_of(child.pid)
    assert not state_of(process).has_ended
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process).is_stopped)
    assert state_of(Process(child.pid, process.started + 1)).has_ended, "another one that has the same id"
    child.kill()
    wait_until(lambda: state_of(process).has_ended)
    assert state_of(process).signal == "SIGKILL"
    child.wait()
    assert state_of(process).has_ended
