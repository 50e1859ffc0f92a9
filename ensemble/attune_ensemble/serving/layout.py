"""Where the packaged tritonserver finds its backends, its libraries and its Python.

The nvidia-pytriton wheel carries the server, the python backend and one stub for each Python version, in folders of
its own. `build_layout` puts them into the shape that `tritonserver --backend-directory` wants:

    <root>/nvidia_pytriton.libs              the wheel's libraries
    <root>/server/lib/backends/python/       the python backend and the stub of this Python
    <root>/server/lib/backends/onnxruntime/  this project's Python-based backend

The depth matters: the backend looks for its libraries four folders up (its RPATH).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attune_client.protocol.errors import ServerUnavailable

__all__ = ["ServerLayout", "ServerPackage", "build_layout", "find_package", "server_environment"]

_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class ServerPackage:
    """What the nvidia-pytriton wheel holds for this Python."""

    binary: Path
    python_backend: Path
    stub: Path
    cache_dir: Path
    libraries: Path


@dataclass(frozen=True, slots=True)
class ServerLayout:
    """A server that can be started: its binary and the folders that it is pointed to."""

    binary: Path
    backend_dir: Path
    cache_dir: Path


def find_package() -> ServerPackage:
    """The installed tritonserver.

    Raises:
        ServerUnavailable: the platform is not Linux on x86-64, the wheel is missing, or it has no stub for this Python.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ServerUnavailable(
            f"the packaged tritonserver runs on Linux x86_64 only; this is {sys.platform} {platform.machine()}"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerUnavailable("the package nvidia-pytriton is missing: pip install 'attune[serve]'")
    return _package_at(Path(spec.origin).parent)


def _package_at(pytriton: Path) -> ServerPackage:
    server = pytriton / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = ServerPackage(
        binary=server / "bin" / "tritonserver",
        python_backend=server / "backends" / "python",
        stub=server / "python_backend_stubs" / version / "triton_python_backend_stub",
        cache_dir=server / "caches",
        libraries=pytriton.parent / "nvidia_pytriton.libs",
    )
    for path in (package.binary, package.python_backend, package.stub, package.libraries):
        if not path.exists():
            raise ServerUnavailable(f"nvidia-pytriton has no {path}: reinstall it (pip install nvidia-pytriton==0.7.0)")
    return package


def build_layout(root: Path, package: ServerPackage) -> ServerLayout:
    """Lay the package and this project's onnxruntime backend out under `root`; doing it twice changes nothing.

    The backends are copied (3 MB): the server refuses a backend library that a link leads out of its folder.
    """
    backends = root / "server" / "lib" / "backends"
    _copy(package.python_backend.glob("*.*"), backends / "python")
    _copy([package.stub], backends / "python")
    _copy([Path(__file__).parent / "onnx_backend" / "model.py"], backends / "onnxruntime")
    libraries = root / package.libraries.name
    libraries.unlink(missing_ok=True)
    libraries.symlink_to(package.libraries)
    return ServerLayout(package.binary, backends, package.cache_dir)


def _copy(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy2(file, folder)


def server_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: this Python's library and programs come first, and threads fit the machine.

    The stub embeds whatever libpython the loader finds first. Were it another build than this interpreter's, compiled
    modules of the standard library would fail to import.

    Raises:
        ServerUnavailable: this Python has no shared libpython.
    """
    environment = dict(inherited)
    environment["LD_LIBRARY_PATH"] = _first(str(_libpython_dir()), inherited.get("LD_LIBRARY_PATH"))
    environment["PATH"] = _first(str(Path(sys.executable).parent), inherited.get("PATH"))
    environment.setdefault("OMP_NUM_THREADS", str(min(_MAX_THREADS, len(os.sched_getaffinity(0)))))
    # Several stubs share the cores, so an idle worker must sleep instead of spinning.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def _libpython_dir() -> Path:
    name = f"libpython{sysconfig.get_python_version()}.so.1.0"
    # Relocated builds of Python carry the folder of the machine that built them in LIBDIR.
    folders = (Path(sysconfig.get_config_var("LIBDIR") or "/"), Path(sys.base_prefix) / "lib")
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise ServerUnavailable(
        f"this Python ({sys.base_prefix}) has no shared library {name}, which the server's stub needs; "
        "use a Python built with --enable-shared (Debian's, pyenv's or uv's)"
    )


def _first(folder: str, paths: str | None) -> str:
    return folder if not paths else f"{folder}{os.pathsep}{paths}"
