"""Who may import whom, read off the sources: `pytest tests/unit/test_architecture.py`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from attune_ensemble.music.registry import ENGINES

ROOT = Path(__file__).parents[2]

# Data flows one way. A package may import itself and what stands here.
ALLOWED = {
    "client/attune_client/protocol": (),
    "client/attune_client": ("attune_client",),
    # Clients are for `chaos` and `cost` alone, the load for `cost`: the other rooms have rules below.
    "ensemble/attune_ensemble": (
        "attune_client.protocol",
        "attune_client.messages",
        "attune_client.bench",
        "attune_client.commands.options",
        "attune_client.aio",
        "attune_client.client",
        "attune_client.interruption",
        "attune_client.results",
        "attune_weights",
    ),
    # A black box test: it sees of the server what everybody sees, and imports nothing of it.
    "ensemble/attune_ensemble/chaos": (
        "attune_client.protocol",
        "attune_client.aio",
        "attune_client.bench.report",
        "attune_client.client",
        "attune_client.interruption",
        "attune_client.results",
        "attune_ensemble.janitor",
    ),
    # Ends what somebody has left: it knows of processes and folders alone.
    "ensemble/attune_ensemble/janitor": (),
    # What the server costs: the client's load on it, and on the same models without it.
    "ensemble/attune_ensemble/cost": (
        "attune_client.protocol",
        "attune_client.aio",
        "attune_client.bench",
        "attune_client.commands.options",
        "attune_ensemble.call",
        "attune_ensemble.serving.configuration",
        "attune_ensemble.serving.local",
    ),
    "ensemble/attune_ensemble/call.py": ("attune_client.protocol",),
    "ensemble/attune_ensemble/speech/overall.py": ("attune_client.protocol",),
    "ensemble/attune_ensemble/pipeline.py": (
        "attune_client.protocol",
        "attune_ensemble.call",
        "attune_ensemble.prompting.embedding",
        "attune_ensemble.speech.choice",
        "attune_ensemble.speech.overall",
    ),
    # The stages know nothing of each other; pipeline.py joins what they serve. Each is handed the context of a call.
    "ensemble/attune_ensemble/speech": (
        "attune_client.protocol",
        "attune_ensemble.call",
    ),
    "ensemble/attune_ensemble/prompting": (
        "attune_client.protocol",
        "attune_ensemble.call",
        "attune_ensemble.serving.scratch",
    ),
    "ensemble/attune_ensemble/music": (
        "attune_client.protocol",
        "attune_client.bench.report",
        "attune_ensemble.call",
    ),
    "ensemble/attune_ensemble/serving": (
        "attune_client.protocol",
        "attune_client.messages",  # requests and responses as messages, for whoever speaks gRPC
        "attune_ensemble.call",
        "attune_ensemble.janitor",
        "attune_ensemble.prompting.knowledge",
        "attune_weights",
    ),
    # Outside the server: one starts it, one is its door, one keeps both at work.
    "ensemble/attune_ensemble/serving/launcher": (
        "attune_client.protocol",
        "attune_client.messages",
        "attune_ensemble.janitor",
        "attune_ensemble.serving.allocation",
        "attune_ensemble.serving.configuration",
        "attune_ensemble.serving.own_server",
        "attune_ensemble.serving.repository",
        "attune_ensemble.serving.scratch",
        "attune_weights",
    ),
    "ensemble/attune_ensemble/serving/supervisor": (
        "attune_client.protocol",
        "attune_ensemble.serving.configuration",
        "attune_ensemble.serving.guard",
        "attune_ensemble.serving.launcher",
        "attune_ensemble.serving.repository",
    ),
    "export/attune_export": (
        "attune_training",
        "attune_client.protocol",
        "attune_client.bench.report",
        "attune_ensemble",
        "attune_weights",
    ),
    "export/attune_weights": (),
    "training/attune_training": ("attune_weights",),
    "training/attune_training/models": ("attune_training.config",),
    # An adapter knows what it is called, and nothing of what it serves.
    "model_repository": (
        "attune_client.protocol",
        "attune_ensemble.call",
        "attune_ensemble.serving.adapter",
        "attune_ensemble.serving.services",
    ),
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
    """What a file imports; of `from package import name` both the package and `package.name`, which may be a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def sources(place: str) -> list[Path]:
    """The file of that name, or the files in the folder of that name."""
    path = ROOT / place
    return [path] if path.is_file() else list(path.rglob("*.py"))


def forbidden(file: Path, allowed: Iterable[str]) -> list[str]:
    """What a file imports of this project beside what is allowed to it, and of the tools, which nobody may import."""
    of_ours = [module for module in imports(file) if module.startswith("attune_") or is_within(module, "tools")]
    return [module for module in of_ours if not any(is_within(module, package) for package in allowed)]


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_flow_one_way(place):
    own = ".".join(place.removesuffix(".py").split("/")[1:])
    assert sources(place)
    for file in sources(place):
        allowed = (*ALLOWED[place], *([own] if own else []), *(STAGES if file == SERVICES else ()))
        assert not forbidden(file, allowed), file


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from attune_ensemble import speech", ["attune_ensemble", "attune_ensemble.speech"]),
        (
            "from attune_ensemble.speech import audio as heard",
            ["attune_ensemble.speech", "attune_ensemble.speech.audio"],
        ),
        ("import attune_ensemble.speech.audio", ["attune_ensemble.speech.audio"]),
        ("import attune_client", ["attune_client"]),
        (
            "def later():\n    from attune_training.config import Recipe",
            ["attune_training.config", "attune_training.config.Recipe"],
        ),
        ("from tools import hearing", ["tools", "tools.hearing"]),
        ("import attune_ensemble.music.planning", ["attune_ensemble.music.planning"]),  # no room within `plan`
        ("from attune_client.protocol import errors\nimport numpy, attune_ensemble.music.plan", []),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, line, found):
    file = tmp_path / "written.py"
    file.write_text(line)
    allowed = ("attune_client.protocol", "attune_ensemble.music.plan")
    assert forbidden(file, allowed) == found


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


def test_the_janitor_needs_nothing_but_the_standard_library():
    """It is started without site packages."""
    cleaning = ROOT / "ensemble/attune_ensemble/janitor/cleaning.py"
    assert {name.split(".")[0] for name in imports(cleaning)} <= {*sys.stdlib_module_names, "__future__"}


def rooms(root: Path) -> set[str]:
    """What needs a rule: each package, and what lies at the top of `attune_ensemble`, folders and files."""
    packages = [file.parent for file in root.glob("*/attune_*/__init__.py")]
    folders = [file.parent for file in root.glob("ensemble/attune_ensemble/*/__init__.py")]
    files = [file for file in root.glob("ensemble/attune_ensemble/*.py") if file.stem != "__init__"]
    return {str(path.relative_to(root)) for path in (*packages, *folders, *files)}


def test_every_room_has_its_rule():
    assert len(rooms(ROOT)) >= 10
    assert rooms(ROOT) <= set(ALLOWED)


def test_a_new_room_without_a_rule_would_be_found(tmp_path):
    for name in ("ensemble/attune_ensemble/dance/__init__.py", "ensemble/attune_ensemble/sing.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert rooms(tmp_path) - set(ALLOWED) == {"ensemble/attune_ensemble/dance", "ensemble/attune_ensemble/sing.py"}


# Who imports a module by a name in a string, which the rules above cannot see, and why.
BY_NAME = {
    "client/attune_client/__init__.py",  # its own modules, when they are asked for
    "ensemble/attune_ensemble/music/registry.py",
    "ensemble/attune_ensemble/serving/launcher/numpy_bridge.py",  # a module that NumPy has moved
    "ensemble/attune_ensemble/speech/av_worker.py",  # PyAV's own modules
    "ensemble/attune_ensemble/speech/whisper.py",  # faster-whisper, without PyAV
}
IMPORTERS = {"__import__", "import_module", "resolve_name", "run_module", "run_path"}


def imports_by_name(file: Path) -> bool:
    """Whether a file names a function that imports by a string."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool(names & IMPORTERS)


def test_what_is_imported_by_its_name_is_imported_by_few():
    files = {file for place in ALLOWED for file in sources(place) if imports_by_name(file)}
    assert {str(file.relative_to(ROOT)) for file in files} == BY_NAME


@pytest.mark.parametrize(
    "line",
    [
        "import importlib; importlib.import_module('attune_ensemble.speech')",
        "from importlib import import_module as load; load('attune_ensemble.speech')",
        "import pkgutil; pkgutil.resolve_name('attune_ensemble.speech:audio')",
        "__import__('attune_ensemble.speech')",
    ],
)
def test_an_import_by_name_is_found(tmp_path, line):
    (tmp_path / "written.py").write_text(line)
    assert imports_by_name(tmp_path / "written.py")


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


# The settings of the engines and the checkpoint of one; the other three hand on the option that names that checkpoint.
NAMING = {
    "export/attune_export/models/music_generator.py",
    "export/attune_export/assemble.py",
    "export/attune_export/commands.py",
    "export/attune_export/parts.py",
}

# What the export of a checkpoint and the engine that loads it must agree on: names of files alone.
CHECKPOINT = "attune_ensemble.music.musicgen.checkpoint"

# The tools that make or measure what belongs to an engine name it, and so does what trains with its benchmark.
ENGINE_USERS = ("client", "ensemble", "export", "model_repository", "training")


def engines_imported(file: Path) -> set[str]:
    """The engines that a file imports, or names as modules in a string, though it lies in none of their folders."""
    words = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
    strings = [word for word in words if isinstance(word, str)]
    packages = {name: f"attune_ensemble.music.{name}" for name in ENGINES if name != engine_of(file)}
    return {
        name
        for name, package in packages.items()
        if any(is_within(module, package) for module in imports(file)) or any(package in word for word in strings)
    }


def test_an_engine_is_imported_by_itself_alone():
    """The registry names it in a string, and imports it when it is chosen."""
    assert {folder.name for folder in MUSIC.iterdir() if (folder / "__init__.py").is_file()} == set(ENGINES)
    for file in (file for room in ENGINE_USERS for file in sources(room)):
        if str(file.relative_to(ROOT)) in NAMING:
            engines = {name for name in imports(file) if is_within(name, "attune_ensemble.music")}
            assert engines <= {CHECKPOINT.rpartition(".")[0], CHECKPOINT}, file
        else:
            assert file == MUSIC / "registry.py" or not engines_imported(file), file


def test_the_names_of_a_checkpoints_files_load_nothing():
    assert not [name for name in imports(MUSIC / "musicgen/checkpoint.py") if name.split(".")[0] != "__future__"]


@pytest.mark.parametrize(
    "line",
    [
        "from attune_ensemble.music import composer",
        "from attune_ensemble.music.composer import engine",
        "import attune_ensemble.music.composer.engine",
        "import_module('attune_ensemble.music.composer.factory')",
        "command = ['-m', 'attune_ensemble.music.composer']",
    ],
)
def test_an_engine_that_is_imported_elsewhere_is_found(tmp_path, line):
    (tmp_path / "written.py").write_text(line)
    assert engines_imported(tmp_path / "written.py") == {"composer"}


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
        "client",
        "export",
        "model_repository",
        *(f"ensemble/attune_ensemble/music/{name}.py" for name in ("engine", "plan", "service")),
        "ensemble/attune_ensemble/serving/services.py",
    ],
)
def test_no_engine_is_named_where_all_are_served(place):
    for file in sources(place):
        if str(file.relative_to(ROOT)) not in NAMING:
            assert not re.findall("|".join(ENGINES), file.read_text(), re.IGNORECASE), file


def test_whoever_may_name_an_engine_does():
    for place in NAMING:
        assert re.findall("|".join(ENGINES), (ROOT / place).read_text(), re.IGNORECASE), place


def test_no_folder_shadows_the_triton_compiler():
    assert not [path for room in ("client", "ensemble", "export", "training") for path in (ROOT / room).rglob("triton")]
