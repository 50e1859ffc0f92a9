"""The deployment of the regressors: their settings, and the export of the saved ones with what they have in common.

The two are compared, and where they compute the same from the inputs on, that part is exported once, as the model
`emotion_encoder` in front of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attune_client.protocol import ModelSpec
from attune_client.protocol.models import AROUSAL_DOMINANCE_MODEL, EMOTION_ENCODER, SPEECH_INPUTS, VALENCE_MODEL
from attune_client.protocol.profiles import EMBEDDED, GPU, TENSORRT, Profile
from attune_export.cut import State, States, specs_at, write_states
from attune_export.digests import Digests, digests_of, digests_of_code, digests_of_exporter, digests_of_weights
from attune_export.errors import ExportError
from attune_export.parts import MPNET, SENTENCE_MODEL, WHISPER, ExportOptions, Part, export_graph, shipped_artifacts
from attune_export.served_model import ONE_THREAD, Kind, ServedModel, Settings
from attune_weights import fetch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attune_export.onnx_export import Sizes
    from attune_training.models.cut import Cut
    from attune_training.models.regressor import Regressor

__all__ = ["REGRESSORS", "TOWERS", "TowerKinds", "regressor", "split", "tower_kinds"]


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

REGRESSORS = (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL)
"""Those that are compared; each is saved in the artifacts' folder of its name."""

_SETTINGS: Mapping[Profile, Settings] = {
    EMBEDDED: Settings(parameters=ONE_THREAD),
    GPU: Settings(on_gpu=True),
    TENSORRT: Settings(on_gpu=True, tensorrt=True),
}


def regressor(spec: ModelSpec) -> ServedModel:
    """Return the served model of a regressor, or of the encoder in front of the regressors."""
    return ServedModel(
        spec,
        Kind.ONNX,
        settings=_SETTINGS,
        max_queue_delay_us=2000,
        part=lambda options: _part(spec, options),
    )


def _part(spec: ModelSpec, options: ExportOptions) -> Part:
    """Return the graph of one of the three; it depends on both regressors, as the cut does."""
    made_from, weights = _made_from(options)

    def build(target: Path) -> float | None:
        models = _split_of(_Sources.of(options), json.dumps(made_from))
        write_states(target, models.states)
        if spec.name not in models.modules:
            return None
        return export_graph(models.modules[spec.name], models.specs[spec.name], target, models.drawer(spec.name))

    return Part(spec.name, made_from, weights, build)


def _made_from(options: ExportOptions) -> tuple[Digests, tuple[str, ...]]:
    """Return what the three graphs are made from, and the names of the weights among it."""
    towers = (TOWERS[tower_kinds(spec, options)] for spec in REGRESSORS)
    weights = tuple(dict.fromkeys(name for names in towers for name in names))
    code = digests_of_code("attune_export.comparison", "attune_export.cut", "attune_training.models.cut")
    saved = {name: digest for spec in REGRESSORS for name, digest in digests_of(_folder(spec, options)).items()}
    return saved | digests_of_exporter() | code | digests_of_weights(*weights), weights


class _Sources(NamedTuple):
    """A saved regressor's folder and the names of its towers' weights, for each of the regressors."""

    folders: tuple[Path, ...]
    towers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, options: ExportOptions) -> _Sources:
        folders = tuple(_folder(spec, options) for spec in REGRESSORS)
        return cls(folders, tuple(TOWERS[tower_kinds(spec, options)] for spec in REGRESSORS))


@dataclass(frozen=True, slots=True)
class _Split:
    """The cut regressors: modules and exact declarations by model, and the states between them."""

    modules: Mapping[str, nn.Module]
    specs: Mapping[str, ModelSpec]
    states: States

    def drawer(self, name: str) -> _Drawer:
        """Return what draws inputs for one of the models."""
        return _Drawer(self, name)


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Draws inputs of one of the models: random speech, and the states that the encoder makes of it."""

    models: _Split
    name: str

    def __call__(self, sizes: Sizes, seed: int) -> dict[str, Tensor]:
        import torch

        from attune_export.onnx_export import random_inputs

        tensors = random_inputs(ModelSpec("speech", SPEECH_INPUTS, ()), sizes, seed)
        wanted = [tensor.name for tensor in self.models.specs[self.name].inputs]
        if not tensors.keys() >= set(wanted):
            encoder = self.models.specs[EMOTION_ENCODER.name]
            given = {tensor.name: tensors[tensor.name] for tensor in encoder.inputs}
            with torch.no_grad():
                states = self.models.modules[encoder.name](**given)
            tensors |= {tensor.name: state for tensor, state in zip(encoder.outputs, states, strict=True)}
        return {name: tensors[name] for name in wanted}


@lru_cache(maxsize=1)
def _split_of(sources: _Sources, made_from: str) -> _Split:
    """Return the saved regressors, cut; those of the last export are kept, since three parts are made from them."""
    from attune_training.config import PretrainedSources
    from attune_training.models.checkpoints import load_regressor
    from attune_training.models.regressor import merge_adapters

    models = []
    for spec, folder, (audio, text) in zip(REGRESSORS, *sources, strict=True):
        try:
            model = load_regressor(folder, PretrainedSources(audio=fetch(audio), text=fetch(text)))
        except (OSError, ValueError) as error:
            raise ExportError(f"{spec.name}: the saved regressor cannot be loaded: {error}") from error
        models.append(merge_adapters(model))
    return split(models)


def split(models: Sequence[Regressor]) -> _Split:
    """Cut regressors, in the order of `REGRESSORS` and with merged adapters, where they begin to differ.

    Of what is shared as a whole the models then have one copy.
    """
    from attune_export.comparison import find_cut
    from attune_training.models.cut import Head, SharedEncoder

    cut = find_cut(models)
    _free_copies(models, cut)
    states = {name: State(behind, width) for name, (behind, width) in cut.states(models[0]).items()}
    modules: dict[str, nn.Module] = {
        spec.name: Head(model, cut) for spec, model in zip(REGRESSORS, models, strict=True)
    }
    if states:
        modules[EMOTION_ENCODER.name] = SharedEncoder(models[0], cut)
    return _Split({name: module.eval() for name, module in modules.items()}, specs_at(states), states)


def _free_copies(models: Sequence[Regressor], cut: Cut) -> None:
    """Let the models have one copy of the streams that lie in front of the cut as a whole: half of all memory."""
    from attune_training.models.cut import audio_steps, text_steps
    from attune_training.models.regressor import AUDIO_STREAM, TEXT_STREAM

    first, *others = models
    whole: list[str] = []
    if cut.pooled or cut.audio == len(audio_steps(first)) - 1:
        whole += AUDIO_STREAM
    if cut.pooled or cut.text == len(text_steps(first)) - 1:
        whole += TEXT_STREAM
    for other in others:
        for name in whole:
            setattr(other, name, getattr(first, name))


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
