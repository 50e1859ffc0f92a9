"""Digests of everything that determines an exported part; a part is built again if one of them has changed."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from attune_export.errors import ExportError
from attune_weights import manifest
from attune_weights.files import sha256_of

__all__ = [
    "Digests",
    "digest_of_bytes",
    "digests_of",
    "digests_of_code",
    "digests_of_exporter",
    "digests_of_weights",
    "files_below",
    "package_dir",
]

Digests = dict[str, str]
"""Digest or version, by the name of an input of a build."""


def digests_of_exporter() -> Digests:
    """Return those of the code and packages that export a graph. Sources are read, not imported: importing is slow."""
    layers = ("models.regressor", "models.towers", "models.mpnet", "models.layers", "config", "models.checkpoints")
    modules = ["attune_export.onnx_export", *(f"attune_training.{name}" for name in layers)]
    packages = {name: version(name) for name in ("onnx", "onnxscript", "peft", "torch", "transformers")}
    return digests_of_code(*modules) | packages


def digests_of_weights(*names: str) -> Digests:
    """Return the fingerprints of pinned weights."""
    return {f"weights {name}": manifest()[name].fingerprint() for name in names}


def digests_of_code(*modules: str) -> Digests:
    """Return digests of the sources of modules, or of all modules of packages.

    Raises:
        ExportError: a module is not installed.
    """
    return {module: digest_of_bytes(b"".join(path.read_bytes() for path in _sources(module))) for module in modules}


def _sources(module: str) -> list[Path]:
    file = _source_file(module)
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _source_file(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ExportError(f"the module {module} is not installed")
    return Path(spec.origin)


def package_dir(package: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        ExportError: it is not installed.
    """
    return _source_file(package).parent


def digests_of(folder: Path, pattern: str = "*") -> Digests:
    """Return digests of the data files of a folder, except documentation (*.md, *.png)."""
    files = (path for path in files_below(folder) if path.match(pattern) and path.suffix not in (".md", ".png"))
    return {f"{folder.name}/{path.relative_to(folder)}": sha256_of(path) for path in files}


def digest_of_bytes(content: bytes) -> str:
    """Return the sha256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def files_below(root: Path) -> Iterator[Path]:
    """Return the file itself, or all files below a folder, sorted."""
    return (path for path in sorted([root, *root.rglob("*")]) if path.is_file())
