"""The part of a model: what `attune export` places beside its configurations, and what the options say of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attune_client.protocol import ModelSpec
from attune_client.protocol.profiles import EMBEDDED, MODEL_FILE, Profile, exported_name
from attune_export.digests import Digests, digest_of_bytes, digests_of_weights, package_dir
from attune_weights import fetch

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NO_MUSICGEN",
    "SENTENCE_MODEL",
    "VERSION_DIR",
    "WHISPER",
    "ExportOptions",
    "Part",
    "copied_weights",
    "export_graph",
    "shipped_artifacts",
]

WHISPER = "whisper-base-ct2"
SENTENCE_MODEL = "all-minilm-l6-v2"
NO_MUSICGEN = "none"
"""In place of MusicGen's weights: the composer plays."""

VERSION_DIR = "1"
"""The version folder that every model has."""


def shipped_artifacts() -> Path:
    """The folder of the trained artifacts that ship with Attune."""
    return package_dir("attune_training") / "artifacts"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What one export was asked for; None leaves the choice to the model."""

    repository: Path
    profile: Profile = EMBEDDED
    artifacts: Path | None = None
    emotion_map: Path | None = None
    musicgen: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one model of the repository needs.

    `build` writes files into an empty folder, under the names that they have in `embedded`, and returns the largest
    deviation of its check (None where nothing is checked); `weights` are fetched before it; `made_from` is everything
    that decides the result. A `shared` part serves every profile; `engine` is the model of which TensorRT makes one.
    """

    model: str
    made_from: Digests
    weights: tuple[str, ...]
    build: Callable[[Path], float | None]
    shared: bool = False
    engine: ModelSpec | None = None

    def fingerprint(self) -> str:
        """Changes when anything that decides the result changes."""
        return digest_of_bytes(json.dumps(self.made_from, sort_keys=True).encode())

    def name(self, file: str, profile: Profile) -> str:
        """The name in the version folder of what `build` calls `file`."""
        return file if self.shared else exported_name(file, profile)


def copied_weights(spec: ModelSpec, weights: str, places: dict[str, str]) -> Part:
    """A part that is pretrained files as they are; `places` says where each goes, inside the version folder."""

    def build(folder: Path) -> None:
        source = fetch(weights)
        for name, target in places.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / target)

    return Part(spec.name, digests_of_weights(weights) | places, (weights,), build, shared=True)


def export_graph(module: nn.Module, spec: ModelSpec, target: Path) -> float:
    """Export `module` into the folder `target`; returns the largest deviation from PyTorch. Raises ExportError."""
    from attune_export.onnx_export import export_model

    return export_model(module, spec, target / MODEL_FILE).max_deviation
