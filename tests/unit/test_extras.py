"""Each extra is what its rooms import, no more and no less: `pytest tests/unit/test_extras.py`."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

ENSEMBLE = "ensemble/attune_ensemble"
CHAOS = f"{ENSEMBLE}/chaos"
COST = f"{ENSEMBLE}/cost"
LAUNCHER = f"{ENSEMBLE}/serving/launcher"
SUPERVISOR = f"{ENSEMBLE}/serving/supervisor"
MUSICGEN = f"{ENSEMBLE}/music/musicgen"
BENCHMARK = f"{MUSICGEN}/benchmark"
PLOT = "client/attune_client/bench/serving/plot.py"

# What each extra is for, and what of that is somebody else's. The bridge to NumPy 2 is loaded in every server process.
ROOMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "client": (("client/attune_client",), (PLOT,)),
    "models": (
        (
            "model_repository",
            "client/attune_client/protocol",
            ENSEMBLE,
            f"{LAUNCHER}/numpy_bridge.py",
        ),
        (CHAOS, COST, LAUNCHER, SUPERVISOR, MUSICGEN),
    ),
    "musicgen": ((MUSICGEN,), (BENCHMARK,)),
    "serve": ((COST, LAUNCHER, SUPERVISOR, "export/attune_weights"), ()),
    "chaos": ((CHAOS,), ()),
    "train": (("training", "export", BENCHMARK, PLOT), ()),
}

# Imported here, and brought by a package that is asked for.
BROUGHT = {
    "av": "faster-whisper",
    "grpcio": "tritonclient",
    "huggingface-hub": "tokenizers",
    "protobuf": "tritonclient",
    "triton": "torch",  # where torch brings CUDA, without which nothing imports it
}
# Asked for, and imported by a library on our behalf: torch's exporter.
ON_BEHALF = {"train": {"onnxscript"}}
BACKEND = {"triton_python_backend_utils", "c_python_backend_utils"}  # the server's own


@cache
def bringers() -> Mapping[str, list[str]]:
    """The distributions that bring each top-level module that is installed here."""
    return packages_distributions()


def files(folder: str) -> Iterator[Path]:
    path = ROOT / folder
    return iter([path] if path.is_file() else path.rglob("*.py"))


def rooms_of(extra: str) -> set[Path]:
    """The sources that an extra is for; what is named file by file counts, though it lies in another's folder."""
    of, others = ROOMS[extra]
    left_out = {file for folder in others for file in files(folder)} - {ROOT / name for name in of}
    return {file for folder in of for file in files(folder)} - left_out


def imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also those of faster-whisper, which are imported by a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_without_pyav":
            yield from (value.value for value in node.args if isinstance(value, ast.Constant))


def distribution(module: str) -> str:
    """The canonical name of the distribution that brings a module, which is the module's own where it tells."""
    top = "protobuf" if module.startswith("google.protobuf") else module.partition(".")[0]
    found = {canonicalize_name(name) for name in bringers().get(top, [top])}
    return top if canonicalize_name(top) in found else min(found)


def wanted_by(extra: str) -> set[str]:
    """Distributions of other people that an extra's rooms import."""
    modules = {module for file in rooms_of(extra) for module in imported(file)}
    own = ("attune_", *BACKEND)
    foreign = {name for name in modules if not name.startswith(own) and name.partition(".")[0] not in KNOWN}
    return {canonicalize_name(distribution(name)) for name in foreign}


KNOWN = {*sys.stdlib_module_names, "__future__", ""}
ALWAYS = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}


def declared(extra: str) -> set[str]:
    """Distributions that an extra names itself."""
    named = {canonicalize_name(Requirement(text).name) for text in EXTRAS[extra]}
    return named - {PROJECT["name"]}


def included(extra: str) -> set[str]:
    """Distributions that an extra names, itself or by another extra of this project."""
    others = {other for text in EXTRAS[extra] for other in _own_extras(Requirement(text))}
    return declared(extra).union(*(included(other) for other in others))


def _own_extras(requirement: Requirement) -> set[str]:
    return requirement.extras if requirement.name == PROJECT["name"] else set()


@pytest.mark.parametrize("extra", ROOMS)
def test_an_extra_brings_what_its_rooms_import(extra):
    beside = {"musicgen": "models"}.get(extra)
    there = ALWAYS | included(extra) | (included(beside) if beside else set())
    there |= {name for name, bringer in BROUGHT.items() if bringer in there}
    assert not wanted_by(extra) - there


@pytest.mark.parametrize("extra", ROOMS)
def test_an_extra_asks_for_nothing_that_its_rooms_do_not_import(extra):
    assert not declared(extra) - wanted_by(extra) - ON_BEHALF.get(extra, set())


def test_every_extra_is_compared_with_rooms_or_is_for_developers():
    assert EXTRAS.keys() == ROOMS.keys() | {"dev", "deploy"}


def test_a_missing_package_would_be_found(tmp_path):
    (tmp_path / "served.py").write_text("import lightning.pytorch\nfrom sklearn import cluster\n")
    assert {distribution(name) for name in imported(tmp_path / "served.py")} == {"lightning", "scikit-learn"}


@pytest.mark.parametrize("heavy", ["torch", "transformers", "lightning", "onnx"])
def test_what_serves_and_what_asks_needs_no_torch(heavy):
    for extra in ("client", "models", "serve"):
        assert heavy not in included(extra)


# Installed alone

EVERY_MODULE = """
import importlib.util, json, sys, types
from importlib.abc import MetaPathFinder

others, modules, paths = json.load(sys.stdin)

class OnlyTheExtra(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"{name} is in no package of the extra", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in others]:
    del sys.modules[name]
sys.meta_path.insert(0, OnlyTheExtra())
sys.path[:0] = paths
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
for name in modules:
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("adapter", name)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    else:
        importlib.import_module(name)
"""


def closure(requirements: list[str]) -> set[str]:
    """Everything that pip would install for requirements on this machine, by canonical names."""
    done: set[tuple[str, str]] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                left += [needed for needed in _required(name) if _applies(needed, extra)]
    return {name for name, _ in done}


def _required(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:  # for another machine
        return []


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def modules_within(extra: str) -> list[str]:
    """The extra's modules by name, and the adapters, which have none, by path."""
    names = []
    for file in sorted(file for file in rooms_of(extra) if file.stem != "__main__"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = re.sub(r"\.__init__$", "", ".".join(parts[1:]))
        names.append(str(file) if parts[0] == "model_repository" else name)
    return names


def import_all(requirements: list[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    installed = closure(requirements)
    others = [top for top, names in bringers().items() if not {canonicalize_name(n) for n in names} & installed]
    others = [top for top in others if not top.startswith("attune_")] + ["attune_training", "attune_export"]
    paths = [str(ROOT / room) for room in ("client", "ensemble", "export")]
    return subprocess.run(
        [sys.executable, "-c", EVERY_MODULE],
        input=json.dumps([others, modules, paths]),
        capture_output=True,
        text=True,
        check=False,
    )


LAZY = ["chromadb", "ctranslate2", "onnxruntime"]  # imported when a model is loaded


def test_the_servers_processes_run_with_the_extra_models_alone():
    modules = [*modules_within("models"), *LAZY]
    done = import_all(EXTRAS["models"], modules)
    assert done.returncode == 0, done.stderr[-800:]
    without = [text for text in EXTRAS["models"] if text != "soxr"]
    done = import_all(without, modules)
    assert "soxr is in no package of the extra" in done.stderr


def test_serve_runs_with_the_extra_models_alone_where_there_is_a_server():
    """As in NVIDIA's image: without what fetches the packaged server."""
    serve = ["attune_ensemble.serving.supervisor.commands", "attune_client.cli"]
    done = import_all([*PROJECT["dependencies"], *EXTRAS["models"]], serve)
    assert done.returncode == 0, done.stderr[-800:]
    assert "attune_weights" not in done.stdout


LOCALLY = ["attune_ensemble.serving.local.graphs", "attune_client", "attune_client.local"]  # as in the README


def test_the_models_in_one_process_run_with_the_extra_models_alone():
    done = import_all([*PROJECT["dependencies"], *EXTRAS["models"]], [*LOCALLY, *LAZY])
    assert done.returncode == 0, done.stderr[-800:]
    without = [text for text in EXTRAS["models"] if not text.startswith("tritonclient")]
    done = import_all(without, LOCALLY)
    assert "tritonclient is in no package of the extra" in done.stderr


def test_a_client_runs_with_its_extra_alone():
    done = import_all([*PROJECT["dependencies"], *EXTRAS["client"]], modules_within("client"))
    assert done.returncode == 0, done.stderr[-800:]


def test_hints_name_extras_that_there_are():
    groups = PROJECT["entry-points"]
    points = {**groups["attune.commands"], **groups["attune.benchmarks"]}
    for name, value in points.items():
        [extra] = re.findall(r"\[(\w+)\]", value)
        assert extra in EXTRAS, name
