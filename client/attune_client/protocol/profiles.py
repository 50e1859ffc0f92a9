"""The profiles, and the names of their files in the model repository.

A profile selects where the models run; the options of the export select the models. `PROFILES` lists the profiles; a
model's settings in each of them are defined with the model, in `attune_export.models`.

All profiles share the version folder of a model. The names of files that depend on an export's options (regressors, the
tokenizers, emotion map, a music engine's checkpoint, the knowledge index with its summaries) contain that of the
profile, so that a profile is never served with the files of another: `model.onnx` in `embedded` is `model.gpu.onnx` in
`gpu`. Files that depend on no option are shared by all profiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from attune_client.protocol.checks import quote
from attune_client.protocol.errors import InvalidOption

__all__ = [
    "CHOICE_DIR",
    "CUT_FILE",
    "EMBEDDED",
    "ENGINE_FILE",
    "ENGINE_SCRIPT",
    "EXPORT_RECORD",
    "GPU",
    "INDEX_DIR",
    "KNOWLEDGE_DIR",
    "LABELS_FILE",
    "MODEL_FILE",
    "PROFILES",
    "REGRESSORS_TOKENIZER",
    "SENTENCES_TOKENIZER",
    "SHARED",
    "TENSORRT",
    "TOKENIZERS_DIR",
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
CUT_FILE = "cut.json"
"""What the regressors have in common, beside the graph of each and of the encoder in front of them."""
TOKENIZER_FILE = "tokenizer.json"
"""Name of a tokenizer in a folder of weights."""
TOKENIZERS_DIR = "tokenizers"
"""Folder of the two tokenizers: of the regressors' text tower, and of the sentence encoder."""
REGRESSORS_TOKENIZER, SENTENCES_TOKENIZER = "regressors.json", "sentences.json"
WHISPER_DIR = "whisper"
KNOWLEDGE_DIR = "knowledge"
"""Folder of the knowledge index, and of the model that summarises where there is one."""
INDEX_DIR = "index"
"""Folder of the index inside `KNOWLEDGE_DIR`; a database may change the sizes of its files when it is opened."""
CHOICE_DIR = "choice"
"""Folder of the fitted choice of an emotion by VAD and words."""
EXPORT_RECORD = "attune-export.json"
"""Record of an export: in the repository's root, and in each model's version folder."""

SHARED = (WHISPER_DIR,)
"""Files and folders that are the same for all profiles and options."""

Setting = TypeVar("Setting")


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the models run.

    `purpose` is a description of one line. A model that has no settings for the profile uses those of the profile
    `inherits`. Only the default profile, `embedded`, inherits from none.
    """

    name: str
    purpose: str
    inherits: Profile | None = None

    def __str__(self) -> str:
        return self.name

    def choose(self, settings: Mapping[Profile, Setting]) -> Setting | None:
        """Return the entry for this profile, or for the nearest one that it inherits from; None if there is none."""
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
"""All profiles by name, the default one first."""


def profile_named(name: str) -> Profile:
    """Return the profile `name`.

    Raises:
        InvalidOption: the name is unknown; the message lists the known ones.
    """
    if name not in PROFILES:
        raise InvalidOption(f"there is no profile {quote(name)}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def config_path(model: str, profile: Profile) -> Path:
    """Return the path of a model's configuration, relative to the model repository."""
    if profile == EMBEDDED:
        return Path(model) / "config.pbtxt"
    return Path(model) / "configs" / f"{profile.name}.pbtxt"


def exported_name(name: str, profile: Profile) -> str:
    """Return the name of a file or folder for a profile: `model.onnx`, `model.gpu.onnx`."""
    if name in SHARED or profile == EMBEDDED:
        return name
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{profile.name}{dot}{suffix}"


def plain_name(name: str, profile: Profile) -> str:
    """Return the name in `embedded` of a name that `exported_name` returned for `profile`."""
    return name.replace(f".{profile.name}", "", 1)


def export_command(profile: Profile) -> str:
    """Return the command that exports for a profile."""
    return "attune export" if profile == EMBEDDED else f"attune export --profile {profile.name}"
