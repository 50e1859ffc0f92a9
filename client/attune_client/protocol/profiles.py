"""The profiles, and the names under which their files lie side by side.

Every model has one version folder for all profiles. What an export's options decide (which regressors, which emotion
map, which MusicGen) bears the profile's name, so that no profile is served with what was exported for another: where
`embedded` has `model.onnx`, `gpu` has `model.gpu.onnx`. What no option decides is shared by all of them.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ENGINE_FILE",
    "ENGINE_SCRIPT",
    "KNOWLEDGE_DIR",
    "LABELS_FILE",
    "MODEL_FILE",
    "MUSICGEN_DIR",
    "SHARED",
    "TOKENIZER_FILE",
    "WHISPER_DIR",
    "Profile",
    "exported_name",
    "plain_name",
]

MODEL_FILE = "model.onnx"
ENGINE_FILE = "model.plan"
ENGINE_SCRIPT = "build_engine.sh"
LABELS_FILE = "labels.txt"
MUSICGEN_DIR = "musicgen"
TOKENIZER_FILE = "tokenizer.json"
WHISPER_DIR = "whisper"
KNOWLEDGE_DIR = "knowledge"

SHARED = (TOKENIZER_FILE, WHISPER_DIR, KNOWLEDGE_DIR)
"""What every export makes alike, whatever its profile and its options."""


class Profile(StrEnum):
    """Where the models run; which models they are is said by the artifacts."""

    EMBEDDED = "embedded"
    GPU = "gpu"
    TENSORRT = "tensorrt"


def exported_name(name: str, profile: Profile) -> str:
    """The name of a file or folder as one profile has it: `model.onnx`, `model.gpu.onnx`, `musicgen.gpu`."""
    if name in SHARED or profile is Profile.EMBEDDED:
        return name
    stem, dot, suffix = name.partition(".")
    return f"{stem}.{profile.value}{dot}{suffix}"


def plain_name(name: str, profile: Profile) -> str:
    """The name in `embedded` of what `exported_name` named for a profile."""
    return name.replace(f".{profile.value}", "", 1)
