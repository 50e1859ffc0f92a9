"""Every command and every program of the README runs: `pytest tests/integration/test_readme.py`.

The two make targets are what CI runs around this; they are left out here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DEFAULT_URL = "127.0.0.1:8001"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("attune ")]
SCRIPTS = [block for block in blocks("sh") if "curl " in block]
DEFAULT_HTTP_URL = "127.0.0.1:8000"


@pytest.fixture
def workplace(tmp_path):
    """A folder with the samples and the models in it, so that what the README writes does not land in the project."""
    for folder in ("samples", "model_repository"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    return tmp_path


def run(command: list[str] | str, server, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ATTUNE_URL": server.grpc_url, "PATH": path}
    shell = isinstance(command, str)
    return subprocess.run(
        command, shell=shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_readme_shows_the_two_commands_and_enough_to_try():
    assert re.search(r"^make run\b", README, flags=re.MULTILINE)
    assert re.search(r"^make test\b", README, flags=re.MULTILINE)
    assert len(COMMANDS) >= 4
    assert len(blocks("python")) >= 2
    assert SCRIPTS


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, server, workplace):
    done = run(command, server, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("program", blocks("python"))
def test_programs(program, server, workplace):
    assert ("LocalModels" in program) != (DEFAULT_URL in program)
    done = run([sys.executable, "-c", program.replace(DEFAULT_URL, server.grpc_url)], server, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_that_ask_how_it_is(script, server, workplace):
    assert DEFAULT_HTTP_URL in script
    done = run(script.replace(DEFAULT_HTTP_URL, server.http_url), server, workplace)
    assert done.returncode == 0, done.stderr
    readiness, _, status = done.stdout.partition("\n")
    assert readiness == "ready"
    assert json.loads(status)["ready"]
