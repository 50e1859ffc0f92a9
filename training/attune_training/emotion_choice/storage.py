"""The folder of a fitted choice, which `attune_ensemble.speech.choice` reads where it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from attune_training.emotion_choice.fitting import Layer
from attune_weights.files import write_json

__all__ = ["CHOICE_FILE", "WORDS_FILE", "read_vad_error", "save_choice"]

CHOICE_FILE, WORDS_FILE = "choice.json", "words.safetensors"

VAD_ERROR = "vad_error"


def save_choice(folder: Path, layer: Layer, record: dict[str, Any]) -> None:
    """Write the layer over the sentence embedding, and a record with all else, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": layer.weights, "bias": layer.bias}, folder / WORDS_FILE)
    write_json(folder / CHOICE_FILE, record)


def read_vad_error(folder: Path) -> tuple[float, float, float]:
    """Return the standard deviation of VAD's error by dimension, for the emotion classifier.

    Raises:
        FileNotFoundError: the folder holds no choice.
        ValueError: it is damaged.
    """
    record = json.loads((folder / CHOICE_FILE).read_text(encoding="utf-8"))
    valence, arousal, dominance = map(float, record[VAD_ERROR])
    return valence, arousal, dominance
