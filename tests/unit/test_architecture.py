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
