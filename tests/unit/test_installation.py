"""A fresh machine: what `make` asks of it, and how Attune is named and installed.

Run: pytest tests/unit/test_installation.py     (the wheel's own test takes minutes: -m slow)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from attune_client import installation
from attune_client.installation import DISTRIBUTION, install_command
from attune_ensemble.serving.launcher import interpreter

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tools" / "check_machine.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# What the check calls; everything else is absent from its PATH.
TOOLS = ("sh", "uname", "getconf", "sed", "sort", "head", "df", "awk", "id", "cut", "grep", "tr", "dirname")


@pytest.fixture
def machine(tmp_path):
    """A machine of our own: a folder of programs, which is all of the check's PATH, and the check itself."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        [found] = [path for folder in ("/bin", "/usr/bin") if (path := Path(folder) / tool).exists()][:1]
        (programs / tool).symlink_to(found)

    def program(name: str, script: str) -> None:
        (programs / name).unlink(missing_ok=True)
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(programs), "HOME": str(tmp_path)}
        return subprocess.run(
            ["/bin/sh", str(CHECK), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
        )

    return SimpleNamespace(program=program, check=check)


def python_that_lacks(*lines: str) -> str:
    """A `python3` of a version that fits, for which interpreter.py reports `lines`."""
    report = "".join(line + "\n" for line in lines)
    # -c '' and the version test are answered with success, interpreter.py with the report.
    return f"case $1 in -c) exit 0 ;; esac\nprintf '%s' '{report}'\nexit {1 if lines else 0}"


def python_of_version(version: str) -> str:
    return f'case $2 in "") ;; *sys.exit*) exit 1 ;; *) printf "%s is Python {version}, and more\\t" "$3" ;; esac'


def test_a_python_that_serves_is_printed(machine):
    machine.program("python3", python_that_lacks())
    done = machine.check()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("/bin/python3")


def test_this_python_serves():
    done = subprocess.run(["/bin/sh", str(CHECK), sys.executable], capture_output=True, text=True)
    assert done.stdout.strip() == sys.executable, done.stderr


def test_what_is_missing_is_named_with_the_packages_that_bring_it(machine):
    lacks = ("no venv\tpython3.11-venv", "no shared library\tlibpython3.11")
    machine.program("python3", python_that_lacks(*lacks))
    machine.program("apt-get", "exit 1")
    done = machine.check()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no venv\n" in done.stderr
    assert "apt-get install -y python3.11-venv libpython3.11\n" in done.stderr
    assert "uv python install" in done.stderr


def test_without_apt_only_uv_is_named(machine):
    machine.program("python3", python_that_lacks("no shared library\tlibpython3.11"))
    done = machine.check()
    assert "apt-get" not in done.stderr
    assert "uv python install 3.12 && make run PYTHON=" in done.stderr


def test_another_python_that_serves_is_taken_instead(machine):
    machine.program("python3.11", python_that_lacks("no shared library\tlibpython3.11"))
    machine.program("python3.13", python_that_lacks())
    assert machine.check().stdout.strip().endswith("/bin/python3.13")


def test_a_shim_without_a_python_behind_it_is_passed_over(machine):
    machine.program("python3.11", "exit 127")
    machine.program("python3.12", python_that_lacks())
    assert machine.check().stdout.strip().endswith("/bin/python3.12")


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_another_version_is_refused(machine, version):
    machine.program("python3", python_of_version(version))
    machine.program("apt-get", "exit 1")
    done = machine.check()
    assert done.returncode == 1
    assert f"is Python {version}" in done.stderr
    assert "apt-get" not in done.stderr, "no package cures the version"
    assert "uv python install" in done.stderr


def test_uv_is_used_where_it_is_and_the_systems_python_does_not_serve(machine, tmp_path):
    machine.program("managed-python", python_that_lacks())
    machine.program("python3", python_of_version("3.14"))
    machine.program("uv", f'[ "$2" = install ] || echo {tmp_path}/bin/managed-python')
    assert machine.check().stdout.strip() == f"{tmp_path}/bin/managed-python"


def test_no_python_at_all_names_the_one_that_the_distribution_has(machine):
    machine.program("apt-get", "exit 1")
    machine.program("apt-cache", "echo 'Version: 3.12.3-0ubuntu2'")
    assert "apt-get install -y python3 python3-venv libpython3.12t64\n" in machine.check().stderr
    machine.program("apt-cache", "echo 'Version: 3.13.5-1'")
    assert "apt-get install -y python3 python3-venv libpython3.13\n" in machine.check().stderr
    machine.program("apt-cache", "echo 'Version: 3.9.2-3'")
    assert "apt-get" not in machine.check().stderr


@pytest.mark.parametrize(
    ("tool", "script", "said"),
    [
        ("uname", "echo Darwin arm64", "it is Darwin arm64, and the packaged server runs on Linux x86_64 only"),
        ("getconf", "echo glibc 2.31", r"needs glibc 2\.35 or newer .*; here it is 2\.31"),
        ("getconf", "exit 1", r"needs glibc 2\.35 or newer .*; here it is another library"),
        ("df", "echo header; echo / 9 9 1048576 9 /", r"about 5 GB of disk are needed here, and 1 GB are free"),
    ],
)
def test_a_machine_that_cannot_serve_is_told_so(machine, tool, script, said):
    machine.program("python3", python_that_lacks())
    machine.program(tool, script)
    done = machine.check()
    assert done.returncode == 1
    assert re.search(said, done.stderr)


def test_a_disk_that_may_be_too_small_is_a_remark(machine):
    machine.program("python3", python_that_lacks())
    machine.program("df", "echo header; echo / 9 9 6291456 9 /")
    done = machine.check()
    assert done.returncode == 0
    assert "6 GB of disk are free: enough, but not where" in done.stderr


def test_a_program_that_is_not_there_is_named(machine):
    assert "there is no program python9" in machine.check("python9").stderr


def test_the_interpreters_own_report(monkeypatch, capsys):
    assert interpreter.main() == 0
    monkeypatch.setattr(interpreter, "find_library", lambda: None)
    monkeypatch.setattr(interpreter.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(interpreter, "_is_known_to_apt", lambda package: package == f"libpython{VERSION}")
    assert interpreter.main() == 1
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == [
        f"python{VERSION}-venv",
        f"libpython{VERSION}",
    ]


def test_the_package_lists_decide_how_the_library_is_called(monkeypatch):
    monkeypatch.setattr(interpreter, "_is_known_to_apt", lambda package: package.endswith("t64"))
    assert interpreter.package_of_library() == f"libpython{VERSION}t64"


def test_the_interpreters_check_needs_nothing_installed():
    script = ROOT / "ensemble" / "attune_ensemble" / "serving" / "launcher" / "interpreter.py"
    assert subprocess.run([sys.executable, "-I", "-S", str(script)], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (
            {"url": "file:///home/me/my%20attune", "dir_info": {"editable": True}},
            "pip install -e '/home/me/my attune[train]'",
        ),
        (
            {"url": "file:///tmp/attune_music-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'attune-music[train] @ file:///tmp/attune_music-0.1.0-py3-none-any.whl'",
        ),
        (None, "pip install 'attune-music[train] @ file:///path/to/attune'"),
    ],
)
def test_an_extra_is_installed_from_where_attune_came_from(monkeypatch, origin, command):
    written = SimpleNamespace(read_text=lambda name: json.dumps(origin) if origin else None)
    monkeypatch.setattr(installation, "distributions", lambda name: [SimpleNamespace(read_text=str.strip), written][1:])
    assert install_command("train").startswith(command)


def listed_files() -> list[str]:
    """What a fresh clone would have, with what is not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def test_one_name_everywhere():
    assert PROJECT["name"] == DISTRIBUTION
    assert f"NAME := {DISTRIBUTION}\n" in (ROOT / "Makefile").read_text()
    strangers = re.compile(r"(?<![\w-])attune\[|pip install '?\"?attune(?![\w-])")
    for name in listed_files():
        if name.endswith(
            (".py", ".md", ".toml", ".txt", ".sh", ".yaml", "Makefile", "run")
        ) and name != "tests/unit/" + (Path(__file__).name):
            assert not strangers.search((ROOT / name).read_text()), f"{name} names a stranger's package"


@pytest.mark.slow
def test_a_client_machine_installs_from_the_wheel(tmp_path):
    """Built as `make wheel` does, into an environment of its own: the client without torch, and every data file."""
    sources = tmp_path / "sources"  # what git lists, so that nothing built before gets in
    for name in listed_files():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, sources / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(sources)],
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "client", with_pip=True)
    python = tmp_path / "client" / "bin" / "python"
    requirement = f"{DISTRIBUTION}[client] @ {wheel.as_uri()}"
    subprocess.run([python, "-m", "pip", "install", "-q", requirement], check=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "AttuneClient" in run(python, "-c", "from attune_client import AttuneClient; print(AttuneClient)")
    names = "from importlib.metadata import distributions as d; print(*(found.name for found in d()))"
    installed = set(run(python, "-c", names).split())
    assert {DISTRIBUTION, "tritonclient"} <= installed
    assert not installed & {"torch", "transformers", "onnxruntime", "chromadb", "faster-whisper"}
    assert f"pip install '{DISTRIBUTION}[serve] @ {wheel.as_uri()}'" in run(python.with_name("attune"), "serve")
    site = next((tmp_path / "client" / "lib").glob("python*/site-packages"))
    packaged = {name.split("/", 1)[1] for name in listed_files() if re.match(r"\w+/attune_\w+/", name)}
    packaged -= {name for name in packaged if name.endswith(".png")}  # pictures for readers
    assert not {name for name in packaged if not (site / name).exists()}
