"""The profiles, and the names under which their files lie side by side in the model repository.

A profile says where the models run; which models they are is decided at the export. `PROFILES` is all there are: one
more is one entry. What a model is set to in each profile stands with the model, in `attune_export.models`.

Every model has one version folder for all profiles. What an export's options decide (which regressors, which emotion
map, which MusicGen) bears the profile's name, so that no profile is served with what was exported for another: where
`embedded` has `model.onnx`, `gpu` has `model.gpu.onnx`. What no option decides is shared by all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption

__all__ = [
    "EMBEDDED",
    "ENGINE_FILE",
    "ENGINE_SCRIPT",
    "EXPORT_RECORD",
    "GPU",
    "KNOWLEDGE_DIR",
    "LABELS_FILE",
    "MODEL_FILE",
    "MUSICGEN_DIR",
    "PROFILES",
    "SHARED",
    "TENSORRT",
    "TOKENIZER_FILE",
    "WHISPER_DIR",
    "Profile",
    "config_path",
    "export_command",
    "exported_name",
    "plain_name",
    "profile_named",
]

MODEL_FILE = "model.onnx"
ENGINE_FILE = "model.plan"
ENGINE_SCRIPT = "build_engine.sh"
LABELS_FILE = "labels.txt"
MUSICGEN_DIR = "musicgen"
TOKENIZER_FILE = "tokenizer.json"
WHISPER_DIR = "whisper"
KNOWLEDGE_DIR = "knowledge"
EXPORT_RECORD = "attune-export.json"
"""What an export leaves in the repository's root, and in each model's version folder, to say what it placed."""

SHARED = (TOKENIZER_FILE, WHISPER_DIR, KNOWLEDGE_DIR)
"""What every export makes alike, whatever its profile and its options."""

Setting = TypeVar("Setting")


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the models run.

    `purpose` is one line for whoever chooses. Where a model has no settings of its own for the profile, it takes those
    of the profile that `inherits` names; only the first profile inherits from none.
    """

    name: str
    purpose: str
    inherits: Profile | None = None

    def __str__(self) -> str:
        return self.name

    def choose(self, settings: Mapping[Profile, Setting]) -> Setting | None:
        """What `settings` has for this profile, or else for the nearest one that it inherits from; None without any."""
        return next((settings[profile] for profile in self._lineage() if profile in settings), None)

    def _lineage(self) -> Iterator[Profile]:
        profile: Profile | None = self
        while profile is not None:
            yield profile
            profile = profile.inherits


EMBEDDED = Profile("embedded", "this machine's CPU, by the packaged server")
GPU = Profile("gpu", "NVIDIA's image on a GPU, ONNX Runtime with CUDA", inherits=EMBEDDED)
TENSORRT = Profile("tensorrt", "NVIDIA's image on a GPU, TensorRT engines", inherits=GPU)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (EMBEDDED, GPU, TENSORRT)}
"""Every profile, by name; the first is what is meant where none is named."""


def profile_named(name: str) -> Profile:
    """The profile of that name; raises `InvalidOption`, naming those there are, when there is none."""
    if name not in PROFILES:
        raise InvalidOption(f"there is no profile {quote(name)}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def config_path(model: str, profile: Profile) -> Path:
    """Where a model's configuration lies, relative to the model repository."""
    if profile == EMBEDDED:
        return Path(model) / "config.pbtxt"
    return Path(model) / "configs" / f"{profile.name}.pbtxt"


def exported_name(name: str, profile: Profile) -> str:
    """The name of a file or folder as one profile has it: `model.onnx`, `model.gpu.onnx`, `musicgen.gpu`."""
    if name in SHARED or profile == EMBEDDED:
        return name
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{profile.name}{dot}{suffix}"


def plain_name(name: str, profile: Profile) -> str:
    """The name in `embedded` of what `exported_name` named for a profile."""
    return name.replace(f".{profile.name}", "", 1)


def export_command(profile: Profile) -> str:
    """The plain command that exports for a profile."""
    return "attune export" if profile == EMBEDDED else f"attune export --profile {profile.name}"
