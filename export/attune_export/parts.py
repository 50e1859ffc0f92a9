"""The part of a model: the files that `attune export` places beside its configurations, and the export's options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attune_client.protocol import ModelSpec
from attune_client.protocol.profiles import EMBEDDED, MODEL_FILE, Profile, exported_name
from attune_ensemble.music.musicgen import checkpoint
from attune_export.digests import Digests, digest_of_bytes, digests_of_weights, package_dir
from attune_weights import fetch

if TYPE_CHECKING:
    from torch import nn

    from attune_export.onnx_export import Draw

__all__ = [
    "MPNET",
    "NO_BART",
    "NO_MUSICGEN",
    "SENTENCE_MODEL",
    "VERSION_DIR",
    "WHISPER",
    "ExportOptions",
    "Part",
    "Substitute",
    "copied_weights",
    "export_graph",
    "shipped_artifacts",
]

WHISPER = "whisper-base-ct2"
SENTENCE_MODEL = "all-minilm-l6-v2"
"""The sentence encoder's weights; a text tower of regressors too."""
MPNET = "all-mpnet-base-v2"
NO_MUSICGEN = checkpoint.NONE
"""Instead of the name of MusicGen's weights: export none, and play with the composer."""
NO_BART = "none"
"""Instead of the name of BART's weights: the template summarises."""

VERSION_DIR = "1"
"""Name of the version folder of every model."""


def shipped_artifacts() -> Path:
    """Return the folder of the trained artifacts that ship with Attune."""
    return package_dir("attune_training") / "artifacts"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of one export; None selects the model's default."""

    repository: Path
    profile: Profile = EMBEDDED
    artifacts: Path | None = None
    emotion_map: Path | None = None
    musicgen: str | None = None
    bart: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The exported files of one model.

    `build` writes them into an empty folder, under their names in `embedded`, and returns the largest deviation found
    by its validation (None: no validation). `weights` are fetched before it. `made_from` identifies everything that
    determines the result. A `shared` part is the same for all profiles. `engine` is the model for which a TensorRT
    engine has to be built; None: no engine. `instead` is placed where the weights cannot be fetched; None: that is an
    error.
    """

    model: str
    made_from: Digests
    weights: tuple[str, ...]
    build: Callable[[Path], float | None]
    shared: bool = False
    engine: ModelSpec | None = None
    instead: Substitute | None = None

    def fingerprint(self) -> str:
        """Return a digest of `made_from`."""
        return digest_of_bytes(json.dumps(self.made_from, sort_keys=True).encode())

    def name(self, file: str, profile: Profile) -> str:
        """Return the name, in the version folder, of what `build` writes as `file`."""
        return file if self.shared else exported_name(file, profile)


@dataclass(frozen=True, slots=True)
class Substitute:
    """A part that needs fewer weights than another, and what is said when it takes the other's place."""

    part: Part
    says: str


def copied_weights(spec: ModelSpec, weights: str, places: dict[str, str]) -> Part:
    """Return a part of unchanged pretrained files; `places` maps their names to paths in the version folder."""

    def build(folder: Path) -> None:
        source = fetch(weights)
        for name, target in places.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / target)

    return Part(spec.name, digests_of_weights(weights) | places, (weights,), build, shared=True)


def export_graph(module: nn.Module, spec: ModelSpec, target: Path, draw: Draw | None = None) -> float:
    """Export `module` to ONNX in the folder `target`; returns the largest deviation from PyTorch.

    `draw` draws the inputs of the comparison; None: they are random.

    Raises:
        ExportError: the export failed, or deviates too far.
    """
    from attune_export.onnx_export import export_model

    return export_model(module, spec, target / MODEL_FILE, draw=draw).max_deviation
