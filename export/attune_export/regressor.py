"""The deployment of the two regressors: shared settings, and the export of a saved regressor to a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from attune_client.protocol import ModelSpec
from attune_client.protocol.profiles import EMBEDDED, GPU, TENSORRT, Profile
from attune_export.digests import digests_of, digests_of_exporter, digests_of_weights
from attune_export.errors import ExportError
from attune_export.parts import MPNET, SENTENCE_MODEL, WHISPER, ExportOptions, Part, export_graph, shipped_artifacts
from attune_export.served_model import ONE_THREAD, Kind, ServedModel, Settings
from attune_weights import fetch

__all__ = ["TOWERS", "TowerKinds", "regressor", "tower_kinds"]


class TowerKinds(NamedTuple):
    """Kinds of a regressor's towers, as its configuration names them."""

    audio: str
    text: str


TOWERS = {
    TowerKinds("whisper", "bert"): (WHISPER, SENTENCE_MODEL),
    TowerKinds("whisper", "mpnet"): (WHISPER, MPNET),
    TowerKinds("hubert", "bert"): ("hubert-base-ls960", "bert-base-uncased"),
}
"""Names of the weights of the audio tower and of the text tower, by the kinds of both."""

_SETTINGS: Mapping[Profile, Settings] = {
    EMBEDDED: Settings(parameters=ONE_THREAD),
    GPU: Settings(on_gpu=True),
    TENSORRT: Settings(on_gpu=True, tensorrt=True),
}


def regressor(spec: ModelSpec) -> ServedModel:
    """Return the served model of a regressor, which is saved in the artifacts' folder of its name."""
    return ServedModel(
        spec,
        Kind.ONNX,
        settings=_SETTINGS,
        max_queue_delay_us=2000,
        part=lambda options: _part(spec, options),
    )


def _part(spec: ModelSpec, options: ExportOptions) -> Part:
    folder = _folder(spec, options)
    audio, text = TOWERS[tower_kinds(spec, options)]

    def build(target: Path) -> float:
        from attune_training.config import PretrainedSources
        from attune_training.models.checkpoints import load_regressor
        from attune_training.models.regressor import merge_adapters

        try:
            model = load_regressor(folder, PretrainedSources(audio=fetch(audio), text=fetch(text)))
        except (OSError, ValueError) as error:
            raise ExportError(f"{spec.name}: the saved regressor cannot be loaded: {error}") from error
        return export_graph(merge_adapters(model), spec, target)

    made_from = digests_of(folder) | digests_of_exporter() | digests_of_weights(audio, text)
    return Part(spec.name, made_from, (audio, text), build)


def _folder(spec: ModelSpec, options: ExportOptions) -> Path:
    return (options.artifacts or shipped_artifacts() / "embedded") / spec.name


def tower_kinds(spec: ModelSpec, options: ExportOptions) -> TowerKinds:
    """Return the kinds of the towers of the saved regressor that is exported as `spec`.

    Raises:
        ExportError: there is no saved regressor, or no weights are known for its towers.
    """
    folder = _folder(spec, options)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # Regressors saved before there was another text tower than BERT do not name its kind.
        kinds = TowerKinds(config["audio"]["kind"], config["text"].get("kind", "bert"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{folder} holds no saved regressor ({error}); it should hold config.json, adapter.safetensors and "
            f"head.safetensors, as attune_training writes them"
        ) from error
    if kinds not in TOWERS:
        raise ExportError(f"{folder}: no weights are known for the towers '{kinds.audio}' and '{kinds.text}'")
    return kinds
