"""The pretrained towers by name: their configurations, pinned weights and tokenizer.

`embedded`: Whisper base's encoder and all-mpnet-base-v2. `embedded-minilm`: all-MiniLM-L6-v2 in mpnet's place, half as
wide and half as deep. `paper`: HuBERT-base and BERT-base-uncased (section III-C2). `tiny`: small, with random
weights from a fixed seed, for trying a command in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from attune_training.config import (
    SAMPLE_RATE,
    ArchitectureName,
    LoraSettings,
    ModelConfig,
    PretrainedSources,
    RegressorConfig,
    Target,
    architecture_configs,
    embedded_config,
    embedded_minilm_config,
    paper_config,
    tiny_config,
)
from attune_training.data.batches import Collator, TextTokens
from attune_training.models.building import Model, build_model
from attune_training.models.checkpoints import load_model, read_config
from attune_weights import fetch

__all__ = ["ReadyModel", "TowersName", "build", "load"]

TowersName = Literal["embedded", "embedded-minilm", "paper", "tiny"]

_CONFIGS: dict[TowersName, Callable[[Target], RegressorConfig]] = {
    "embedded": embedded_config,
    "embedded-minilm": embedded_minilm_config,
    "paper": paper_config,
    "tiny": tiny_config,
}
_WEIGHTS: dict[TowersName, tuple[str, str]] = {
    "embedded": ("whisper-base-ct2", "all-mpnet-base-v2"),
    "embedded-minilm": ("whisper-base-ct2", "all-minilm-l6-v2"),
    "paper": ("hubert-base-ls960", "bert-base-uncased"),
}
"""Names of the weights of the audio and of the text tower; the others' are random."""

_TINY_SEED = 0


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model with its towers, their name, and the tokenizer of the text tower."""

    model: Model
    towers: TowersName
    tokens: TextTokens

    def collator(self) -> Collator:
        """Return the collator of this model's batches."""
        config = self.model.config
        return Collator(self.tokens, config.target, config.audio.max_samples / SAMPLE_RATE)


def build(towers: TowersName, architecture: ArchitectureName, target: Target, lora: LoraSettings | None) -> ReadyModel:
    """Return a new model of one of Table I's architectures; `lora` None: no adapters.

    Raises:
        ValueError: the architecture does not predict the target, or takes no adapters.
        WeightsError: the towers' weights cannot be fetched.
    """
    config = _config(towers, architecture, target, lora)
    with _reproducible_towers(towers):
        model = build_model(config, _sources(towers))
    return ReadyModel(model, towers, _tokens(towers))


def load(folder: Path) -> ReadyModel:
    """Return a saved model in evaluation mode, with the towers that it was trained with.

    Raises:
        FileNotFoundError: the folder holds no saved model.
        ValueError: its towers have no name here, or its files do not fit.
        WeightsError: the towers' weights cannot be fetched.
    """
    towers = _towers_of(read_config(folder), folder)
    with _reproducible_towers(towers):
        model = load_model(folder, _sources(towers))
    return ReadyModel(model, towers, _tokens(towers))


def _config(
    towers: TowersName, architecture: ArchitectureName, target: Target, lora: LoraSettings | None
) -> ModelConfig:
    for config in architecture_configs(architecture, _CONFIGS[towers](target)):
        if config.target == target:
            if isinstance(config, RegressorConfig):
                return replace(config, lora=None if lora is None else lora.for_text(config.text.kind))
            if lora is not None:
                raise ValueError(f"{architecture} stands on frozen towers: leave lora out (null)")
            return config
    raise ValueError(f"{architecture} does not train {target} alone")


def _towers_of(config: ModelConfig, folder: Path) -> TowersName:
    for name, make in _CONFIGS.items():
        towers = make("valence")
        # A unimodal model has no text tower.
        if config.audio == towers.audio and getattr(config, "text", towers.text) == towers.text:
            return name
    raise ValueError(f"{folder}: its towers are none of {', '.join(_CONFIGS)}")


def _reproducible_towers(towers: TowersName) -> AbstractContextManager[None]:
    """Return a context in which random towers are reproducible, since they are not saved with the model."""
    return _seeded() if towers == "tiny" else nullcontext()


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(_TINY_SEED)
        yield


def _sources(towers: TowersName) -> PretrainedSources | None:
    if towers not in _WEIGHTS:
        return None
    audio, text = _WEIGHTS[towers]
    return PretrainedSources(fetch(audio), fetch(text))


def _tokens(towers: TowersName) -> TextTokens:
    if towers not in _WEIGHTS:
        return TextTokens.of_letters()
    return TextTokens.of_folder(fetch(_WEIGHTS[towers][1]))
