"""The fitted choice of an emotion, as a part of the models that choose one."""

from __future__ import annotations

import shutil
from pathlib import Path

from attune_client.protocol import ModelSpec
from attune_client.protocol.profiles import CHOICE_DIR
from attune_ensemble.speech.choice import BY_VAD_AND_WORDS, CHOICE_FILE, WORDS_FILE
from attune_export.digests import digests_of
from attune_export.parts import ExportOptions, Part, shipped_artifacts

__all__ = ["CHOICE_SETTINGS", "choice_folder", "choice_part"]

CHOICE_SETTINGS = {"emotion_choice": BY_VAD_AND_WORDS}
"""The parameters of a model that chooses an emotion; `vad` instead is the paper's way."""

_FOLDER = "emotion_choice"


def choice_folder(options: ExportOptions) -> Path:
    """Return the folder of the choice: the artifacts' own, or else the one that ships."""
    own = options.artifacts / _FOLDER if options.artifacts else None
    return own if own and (own / CHOICE_FILE).is_file() else shipped_artifacts() / _FOLDER


def choice_part(spec: ModelSpec, options: ExportOptions) -> Part:
    """Return the part of `spec`: the files of the choice, copied."""
    folder = choice_folder(options)

    def build(target: Path) -> None:
        (target / CHOICE_DIR).mkdir(parents=True)
        for name in (CHOICE_FILE, WORDS_FILE):
            shutil.copyfile(folder / name, target / CHOICE_DIR / name)

    return Part(spec.name, digests_of(folder), (), build)
