"""The folder of a fitted choice, which `attune_ensemble.speech.choice` reads where it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from attune_training.emotion_choice.fitting import Layer
from attune_training.providers import choice_files
from attune_weights.files import write_json

__all__ = ["read_vad_error", "save_choice"]

VAD_ERROR = "vad_error"


def save_choice(folder: Path, layer: Layer, record: dict[str, Any]) -> None:
    """Write the layer over the sentence embedding, and a record with all else, into `folder`.

    Raises:
        ProviderError: no provider is installed.
    """
    record_file, words_file = choice_files()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": layer.weights, "bias": layer.bias}, folder / words_file)
    write_json(folder / record_file, record)


def read_vad_error(folder: Path) -> tuple[float, float, float]:
    """Return the standard deviation of VAD's error by dimension, for the emotion classifier.

    Raises:
        FileNotFoundError: the folder holds no choice.
        ValueError: it is damaged.
        ProviderError: no provider is installed.
    """
    record_file, _ = choice_files()
    record = json.loads((folder / record_file).read_text(encoding="utf-8"))
    valence, arousal, dominance = map(float, record[VAD_ERROR])
    return valence, arousal, dominance
