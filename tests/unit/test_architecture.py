"""Who may import whom, read off the sources: `pytest tests/unit/test_architecture.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Data flows one way. A package may import itself and what stands here.
ALLOWED = {
    "client/attune_client/protocol": (),
    "client/attune_client": ("attune_client",),
    # The report is how every benchmark prints.
    "ensemble/attune_ensemble": ("attune_client.protocol", "attune_client.bench.report", "attune_weights"),
    # The stages know nothing of each other; pipeline.py joins what they serve.
    "ensemble/attune_ensemble/speech": ("attune_client.protocol",),
    "ensemble/attune_ensemble/prompting": (
        "attune_client.protocol",
        "attune_ensemble.pipeline",
        "attune_ensemble.serving.scratch",
    ),
    "ensemble/attune_ensemble/music": (
        "attune_client.protocol",
        "attune_client.bench.report",
    ),
    "ensemble/attune_ensemble/serving": (
        "attune_client.protocol",
        "attune_ensemble.prompting.knowledge",
        "attune_weights",
    ),
    "export/attune_export": ("attune_training", "attune_client.protocol", "attune_ensemble", "attune_weights"),
    "export/attune_weights": (),
    "training/attune_training": ("attune_weights",),
    "training/attune_training/models": ("attune_training.config",),
    "model_repository": ("attune_client.protocol", "attune_ensemble"),
}

# What the serving processes must never load, and PyAV, which bundles codecs under the GPL.
NEVER_SERVED = ("torch", "transformers", "sentence_transformers", "av")

# PyAV runs in a process of its own, started by name.
AV_PROCESS = "av_worker"

# MusicGen runs on torch, in the process of `music_generator` alone and only where it is chosen.
MUSICGEN = "musicgen"
MUSICGEN_PACKAGE = f"attune_ensemble.music.{MUSICGEN}"
ALLOWED_IN_MUSICGEN = ("torch", "transformers")


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_flow_one_way(folder):
    own = ".".join(folder.split("/")[1:])
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for module in imports(file):
            assert not is_within(module, "tools"), f"{file} imports {module}"
            if module.startswith("attune_"):
                allowed = (*ALLOWED[folder], *([own] if own else []))
                assert any(is_within(module, package) for package in allowed), f"{file} imports {module}"


# The ground floors, and all that they may stand on beside the standard library.
GROUND_FLOORS = {
    "attune_client.protocol": {"numpy"},
    "attune_weights": {"certifi", "filelock", "httpx", "huggingface_hub", "platformdirs", "rich", "yaml"},
}

# Imports every module of a package, and says what the interpreter then holds.
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
print(*(name for name in sys.modules if name.startswith("attune_")))
"""


@pytest.mark.parametrize(("package", "libraries"), GROUND_FLOORS.items())
def test_a_ground_floor_stands_on_nothing_of_the_others(package, libraries):
    allowed = libraries | sys.stdlib_module_names
    [folder] = [folder for folder in ALLOWED if folder.partition("/")[2].replace("/", ".") == package]
    for file in (ROOT / folder).rglob("*.py"):
        for module in imports(file):
            assert is_within(module, package) or module.split(".")[0] in allowed, f"{file} imports {module}"
    loaded = subprocess.run([sys.executable, "-c", IMPORT_ALL, package], capture_output=True, text=True, check=True)
    parents = {package.rpartition(".")[0], package}
    others = {name for name in loaded.stdout.split() if not is_within(name, package) and name not in parents}
    assert not others, f"{package} loads {others}"


def test_every_room_has_its_rule():
    packages = {str(file.parent.relative_to(ROOT)) for file in ROOT.glob("*/attune_*/__init__.py")}
    assert len(packages) >= 5
    assert packages <= set(ALLOWED)


@pytest.mark.parametrize("folder", ["client/attune_client", "ensemble/attune_ensemble", "model_repository"])
def test_what_is_served_names_no_training_library(folder):
    for file in (ROOT / folder).rglob("*.py"):
        allowed = ALLOWED_IN_MUSICGEN if MUSICGEN in file.parts else ("av",) if file.stem == AV_PROCESS else ()
        for module in imports(file):
            forbidden = any(is_within(module, library) for library in NEVER_SERVED if library not in allowed)
            assert not forbidden, f"{file} imports {module}"


def test_nothing_imports_the_process_that_decodes_with_pyav():
    for folder in ALLOWED:
        for file in (ROOT / folder).rglob("*.py"):
            assert not any(is_within(name, f"attune_ensemble.speech.{AV_PROCESS}") for name in imports(file)), file


def test_only_the_choice_of_an_engine_imports_musicgen_and_only_when_it_is_chosen():
    for file in (ROOT / "ensemble").rglob("*.py"):
        if MUSICGEN not in file.parts and any(is_within(name, MUSICGEN_PACKAGE) for name in imports(file)):
            assert file == ROOT / "ensemble/attune_ensemble/music/registry.py"
    program = "import sys, attune_ensemble.music.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_folder_shadows_the_triton_compiler():
    assert not [path for room in ("client", "ensemble", "export", "training") for path in (ROOT / room).rglob("triton")]
