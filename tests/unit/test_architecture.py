"""Who may import whom, read off the sources: `pytest tests/unit/test_architecture.py`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune_ensemble.music.registry import ENGINES

ROOT = Path(__file__).parents[2]

# Data flows one way. A package may import itself and what stands here.
ALLOWED = {
    "client/attune_client/protocol": (),
    "client/attune_client": ("attune_client",),
    # The report is how every benchmark prints.
    "ensemble/attune_ensemble": ("attune_client.protocol", "attune_client.bench.report", "attune_weights"),
    # The stages know nothing of each other; pipeline.py joins what they serve. Each is handed the context of a call.
    "ensemble/attune_ensemble/speech": (
        "attune_client.protocol",
        "attune_ensemble.serving.call",
    ),
    "ensemble/attune_ensemble/prompting": (
        "attune_client.protocol",
        "attune_ensemble.serving.call",
        "attune_ensemble.serving.scratch",
    ),
    "ensemble/attune_ensemble/music": (
        "attune_client.protocol",
        "attune_client.bench.report",
        "attune_ensemble.serving.call",
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

# The one file of `serving` that knows the stages: it makes of each what the models serve.
SERVICES = ROOT / "ensemble/attune_ensemble/serving/services.py"
STAGES = (
    "attune_ensemble.music",
    "attune_ensemble.pipeline",
    "attune_ensemble.prompting",
    "attune_ensemble.speech",
)

# What the serving processes must never load, and PyAV, which bundles codecs under the GPL.
NEVER_SERVED = ("torch", "transformers", "sentence_transformers", "av")

# PyAV runs in a process of its own, started by name.
AV_PROCESS = "av_worker"

# MusicGen runs on torch, in the process of `music_generator` alone and only where it is chosen.
MUSICGEN = "musicgen"
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
                allowed = (*ALLOWED[folder], *([own] if own else []), *(STAGES if file == SERVICES else ()))
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


MUSIC = ROOT / "ensemble/attune_ensemble/music"


def engine_of(file: Path) -> str | None:
    """The music engine whose folder a file lies in."""
    return next((name for name in ENGINES if MUSIC / name in file.parents), None)


def test_an_engine_is_imported_by_itself_alone():
    """The registry names it in a string, and imports it when it is chosen."""
    assert {folder.name for folder in MUSIC.iterdir() if (folder / "__init__.py").is_file()} == set(ENGINES)
    for file in (ROOT / "ensemble").rglob("*.py"):
        for name in ENGINES:
            if name != engine_of(file):
                package = f"attune_ensemble.music.{name}"
                assert not any(is_within(module, package) for module in imports(file)), f"{file} imports {package}"


def test_whoever_asks_which_engines_there_are_loads_none_of_their_libraries():
    program = (
        "import sys; from attune_ensemble.music import registry, service;"
        "registry.engine_metrics(registry.EngineOptions());"
        "sys.exit(bool({'torch', 'scipy', 'soundfile'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "place",
    [
        "client/attune_client/protocol",
        "model_repository/music_generator/1",
        *(f"ensemble/attune_ensemble/music/{name}.py" for name in ("engine", "plan", "service")),
        "ensemble/attune_ensemble/serving/services.py",
    ],
)
def test_no_engine_is_named_where_all_are_served(place):
    path = ROOT / place
    for file in [path] if path.is_file() else path.glob("*.py"):
        assert not re.findall("|".join(ENGINES), file.read_text(), re.IGNORECASE), file


def test_no_folder_shadows_the_triton_compiler():
    assert not [path for room in ("client", "ensemble", "export", "training") for path in (ROOT / room).rglob("triton")]
