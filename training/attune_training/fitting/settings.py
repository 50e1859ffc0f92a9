"""Training settings: typed, read from YAML files and validated field by field.

A recipe is a YAML file with the fields of `Recipe`; missing fields take their defaults. The packaged recipes lie
in `attune_training/recipes` and are referred to by name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from attune_training.augmentation import WaveformAugmentation
from attune_training.config import NEUTRAL_VAD, ArchitectureName, LoraSettings
from attune_training.models.losses import AgreementLoss, DynamicWeighting, ValenceSmoothing
from attune_training.pretrained import TowersName

__all__ = [
    "Augmentation",
    "CorpusSettings",
    "Lora",
    "ModelSettings",
    "Optimisation",
    "Recipe",
    "SettingsError",
    "SpectrogramMasking",
    "load_recipe",
    "recipe_names",
]

_STRICT = ConfigDict(extra="forbid")


class SettingsError(ValueError):
    """A recipe is missing, or a field in it is unknown or of the wrong type."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Rank and alpha of the adapters (paper, Table II), and how many of the text tower's last layers have any."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    text_layers: int | None = None

    def settings(self) -> LoraSettings:
        """Return the model's settings: the paper's modules, with these numbers."""
        return LoraSettings(self.rank, self.alpha, self.dropout, text_layers=self.text_layers)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The towers, the architecture of Table I, and the adapters (None: frozen towers alone).

    `towers`: see `attune_training.pretrained`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    towers: TowersName = "embedded"
    architecture: ArchitectureName = "cross-modal-separate"
    lora: Lora | None = field(default_factory=Lora)


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """One corpus of a run.

    `kind`: see `attune_training.data.corpus.CORPUS_KINDS`. `split`: see
    `attune_training.data.splits.parse_split_policy`. `weight`: of each sample in the loss. `per_epoch`: how
    many utterances an epoch draws (None: all). `without_voice` and `without_words`: fractions of them whose audio, or
    text, an epoch drops, so that the model also works with one stream. `foreign_words`: fraction of them whose words
    are replaced by those of the corpus `words_from`; the targets' deviations from neutral are then added, `neutral`
    being the VAD of a voice that says nothing of a feeling.
    `relative`: its ratings say which utterance lies higher and not how high, as where they are crowded at the middle of
    the scale; `agreement` as the loss then asks for correlation alone. `longest_s`: a longer recording is cut to a
    random window of this length, in seconds. `validated`: how many utterances of the validation part select the epoch
    (None: all).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: str
    split: str = "stratified"
    weight: float = 1.0
    per_epoch: int | None = None
    without_voice: float = 0.0
    without_words: float = 0.0
    foreign_words: float = 0.0
    words_from: str = ""
    neutral: tuple[float, float, float] = (NEUTRAL_VAD, NEUTRAL_VAD, NEUTRAL_VAD)
    relative: bool = False
    longest_s: float = 8.0
    validated: int | None = None


@dataclass(frozen=True, slots=True)
class SpectrogramMasking:
    """Masks of the audio front end's output (SpecAugment): their numbers, and the largest fraction of an axis."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    time_masks: int = 2
    channel_masks: int = 2
    share: float = 0.1


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Data augmentation (paper, section III-B); `synonyms` is the fraction of replaceable words that are replaced."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    waveform: WaveformAugmentation = field(default_factory=WaveformAugmentation)
    synonyms: float = 0.5
    masking: SpectrogramMasking = field(default_factory=SpectrogramMasking)


@dataclass(frozen=True, slots=True)
class Optimisation:
    """AdamW with a one-cycle learning rate schedule.

    `warm_up` is the fraction of steps with a rising rate. Early stopping ends training after `patience` epochs
    without a better validation score. `averaging` is the decay per step of the exponential moving average of the
    weights that is validated and kept (0: none). `voice_rate` and `words_rate` multiply the learning rate of the
    audio and the text stream: at 0 a stream's tower, layers and projections are frozen up to the cross-attention.
    `categories` is the weight of an auxiliary loss: the acted category, predicted from the audio stream by a layer
    that is discarded after training (0: none).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    epochs: int = 20
    learning_rate: float = 8e-4
    voice_rate: float = 1.0
    words_rate: float = 1.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warm_up: float = 0.2
    batch_size: int = 16
    words_batch_size: int = 32
    patience: int = 5
    averaging: float = 0.98
    categories: float = 0.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a run, except the paths of its data.

    `loss`: the paper's (equations 14 to 19, with `smoothing` and `weighting`), or `agreement` within each corpus.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: ModelSettings = field(default_factory=ModelSettings)
    corpora: dict[str, CorpusSettings] = field(default_factory=dict)
    optimisation: Optimisation = field(default_factory=Optimisation)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Literal["paper", "agreement"] = "paper"
    smoothing: ValenceSmoothing = field(default_factory=ValenceSmoothing)
    weighting: DynamicWeighting = field(default_factory=DynamicWeighting)
    agreement: AgreementLoss = field(default_factory=AgreementLoss)
    seed: int = 0

    def to_yaml(self) -> str:
        """Return the recipe with every field written out."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a packaged recipe by name, or a YAML file.

    Raises:
        SettingsError: there is none, or a field is unknown or of the wrong type; the message names the field.
    """
    text = _recipe_text(name_or_path)
    try:
        return TypeAdapter(Recipe).validate_python(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise SettingsError(f"{name_or_path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{name_or_path}:\n{_messages(error)}") from error


def _shipped() -> Any:
    return resources.files("attune_training").joinpath("recipes")


def _recipe_text(name_or_path: str) -> str:
    if name_or_path in recipe_names():
        text: str = _shipped().joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return text
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"no recipe {name_or_path!r}: give a YAML file, or one of {', '.join(recipe_names())}"
        ) from error


def _messages(error: ValidationError) -> str:
    """Return one line for each field at fault."""
    lines = (f"  {'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors())
    return "\n".join(lines)
