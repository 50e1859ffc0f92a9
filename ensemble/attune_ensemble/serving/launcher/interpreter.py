"""Check whether a Python can install Attune and run the packaged server, with the package to install if it cannot.

The server's stub loads Python as a shared library, which Debian and Ubuntu have in a separate package. `make setup`
runs this file before anything is installed, so it imports the standard library only:

    python3 ensemble/attune_ensemble/serving/launcher/interpreter.py     # what is missing, one line each; else status 0
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["find_library", "library_name", "missing", "package_of_library"]

OLDEST, NEWEST = (3, 11), (3, 13)
"""The versions that the server has a stub for and Attune supports."""


def library_name() -> str:
    """Return the name of this Python's shared library that the stub loads."""
    return f"libpython{sysconfig.get_python_version()}.so.1.0"


def find_library() -> Path | None:
    """Return the path of this Python's shared library; None if there is none."""
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/")
    # Debian has it in the folder of the architecture. In relocated builds (uv's) LIBDIR is that of the build machine.
    folders = (libdir / (sysconfig.get_config_var("MULTIARCH") or ""), libdir, Path(sys.base_prefix) / "lib")
    return next((path for folder in folders if (path := folder / library_name()).is_file()), None)


def package_of_library() -> str:
    """Return the package of Debian or Ubuntu with the shared library.

    If the package lists do not contain it: only Ubuntu 24.04's 3.12 was renamed, for 64-bit time.
    """
    plain = f"libpython{sysconfig.get_python_version()}"
    candidates = (f"{plain}t64", plain) if sys.version_info[:2] == (3, 12) else (plain, f"{plain}t64")
    return next((name for name in candidates if _is_known_to_apt(name)), candidates[0])


def _is_known_to_apt(package: str) -> bool:
    if not shutil.which("apt-cache"):
        return False
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def missing() -> dict[str, str]:
    """Return what this Python lacks: a sentence each, with the Debian package that provides it ("" if none does)."""
    version = sysconfig.get_python_version()
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        return {f"Python {version} ({sys.executable}): Attune needs {oldest} to {newest}": ""}
    found = {}
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        found[f"Python {version} has no venv module with pip"] = f"python{version}-venv"
    if find_library() is None:
        found[f"Python {version} has no shared library {library_name()}"] = package_of_library()
    return found


def main() -> int:
    """Print a line `sentence<TAB>package` for each thing that is missing; the status says whether there were any."""
    lacks = missing()
    for sentence, package in lacks.items():
        print(f"{sentence}\t{package}")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
