"""What decides an exported part, told by digests: an export builds again what any of them changed for."""

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
"""By the name of something that decides a result, its sha256 or its version."""


def digests_of_exporter() -> Digests:
    """The code and the packages that decide an exported graph; read from disk, for importing them takes seconds."""
    layers = ("models.regressor", "models.towers", "models.layers", "config", "models.checkpoints")
    modules = ["attune_export.onnx_export", *(f"attune_training.{name}" for name in layers)]
    packages = {name: version(name) for name in ("onnx", "onnxscript", "peft", "torch", "transformers")}
    return digests_of_code(*modules) | packages


def digests_of_weights(*names: str) -> Digests:
    """The fingerprints of pinned weights, by their names in the manifest."""
    return {f"weights {name}": manifest()[name].fingerprint() for name in names}


def digests_of_code(*modules: str) -> Digests:
    """Digests of the sources of modules, or of every module of packages. Raises ExportError for one not installed."""
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
    """The folder of an installed package. Raises ExportError where it is not installed."""
    return _source_file(package).parent


def digests_of(folder: Path, pattern: str = "*") -> Digests:
    """Digests of a folder's data files; what is written (*.md) and drawn (*.png) about them decides nothing."""
    files = (path for path in files_below(folder) if path.match(pattern) and path.suffix not in (".md", ".png"))
    return {f"{folder.name}/{path.relative_to(folder)}": sha256_of(path) for path in files}


def digest_of_bytes(content: bytes) -> str:
    """The sha256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def files_below(root: Path) -> Iterator[Path]:
    """The file itself, or all files below the folder."""
    return (path for path in sorted([root, *root.rglob("*")]) if path.is_file())
