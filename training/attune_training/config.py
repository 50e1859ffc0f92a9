"""Configurations of the regressors: frozen, typed, and exact in JSON.

A configuration defines a model's architecture completely, so that a model can be built without its pretrained
weights (random towers for tests) and a saved one can be rebuilt and its parameters checked by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = [
    "DIMENSIONS",
    "MAX_VAD",
    "MIN_VAD",
    "NEUTRAL_VAD",
    "SAMPLE_RATE",
    "TABLE_2_LORA",
    "TARGET_NAMES",
    "ArchitectureName",
    "AudioTowerConfig",
    "Calibration",
    "LoraSettings",
    "ModelConfig",
    "PretrainedSources",
    "RegressorConfig",
    "Target",
    "TextTowerConfig",
    "UnimodalConfig",
    "UnimodalName",
    "architecture_configs",
    "config_from_json",
    "embedded_config",
    "embedded_minilm_config",
    "paper_config",
    "tiny_config",
]

SAMPLE_RATE = 16_000
"""Sampling rate of the regressors' input waveforms, in Hz."""

Target = Literal["valence", "arousal_dominance", "valence_arousal_dominance"]

TARGET_NAMES: dict[str, tuple[str, ...]] = {
    "valence": ("valence",),
    "arousal_dominance": ("arousal", "dominance"),
    "valence_arousal_dominance": ("valence", "arousal", "dominance"),
}
"""The dimensions that a model of each target predicts, in the order of its output columns.

The paper serves the first two (section III-C); the third is the joint model of Table I.
"""

DIMENSIONS = TARGET_NAMES["valence_arousal_dominance"]
"""All dimensions, in the order in which they are written everywhere."""

MIN_VAD, NEUTRAL_VAD, MAX_VAD = 1.0, 3.0, 5.0
"""Lower end, midpoint and upper end of the scale of every dimension."""

UnimodalName = Literal["gru-shared", "gru-separate", "transformer-shared", "transformer-separate"]

ArchitectureName = Literal[UnimodalName, "cross-modal-joint", "cross-modal-separate"]
"""The six rows of the paper's Table I."""


@dataclass(frozen=True, slots=True)
class PretrainedSources:
    """Where the frozen towers' weights are.

    `audio` is a folder: Whisper in CTranslate2's format for a `whisper` tower, transformers' HuBERT for a
    `hubert` tower. `text` is a folder of transformers' BERT or MPNet.
    """

    audio: Path
    text: Path


@dataclass(frozen=True, slots=True)
class AudioTowerConfig:
    """Shape of the audio tower; the defaults are Whisper base's encoder.

    `max_samples` is the longest waveform (8 s in the paper). With `layer_mix` the tower returns a learned
    softmax mix of all its layers' outputs in place of the last one.
    """

    kind: Literal["whisper", "hubert"] = "whisper"
    width: int = 512
    num_layers: int = 6
    num_heads: int = 8
    feedforward: int = 2048
    max_samples: int = 8 * SAMPLE_RATE
    layer_mix: bool = True
    # Whisper only.
    num_mels: int = 80
    # HuBERT only.
    conv_channels: int = 512
    position_kernel: int = 128
    position_groups: int = 16


@dataclass(frozen=True, slots=True)
class TextTowerConfig:
    """Shape of the text tower, a BERT or an MPNet; the defaults are all-MiniLM-L6-v2's, a BERT."""

    kind: Literal["bert", "mpnet"] = "bert"
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    feedforward: int = 1536
    vocab_size: int = 30_522
    max_tokens: int = 512


_MPNET_NAMES = {"query": "q", "key": "k", "value": "v"}
"""The matrices of BERT's attention and their names in MPNet."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (paper, equations 1-2): the scale of the update is `alpha / rank`.

    `text_layers`: only the last so many layers of the text tower are adapted (None: all).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    audio_modules: tuple[str, ...] = ("q_proj", "v_proj")
    text_modules: tuple[str, ...] = ("query", "value")
    text_layers: int | None = None

    def for_text(self, kind: Literal["bert", "mpnet"]) -> LoraSettings:
        """Return the settings with the text tower's matrices under the names that they have in a tower of `kind`."""
        names = {"bert": {ours: berts for berts, ours in _MPNET_NAMES.items()}, "mpnet": _MPNET_NAMES}[kind]
        return replace(self, text_modules=tuple(names.get(name, name) for name in self.text_modules))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The monotone map of each output, in the order of the outputs: raw outputs times `scale` plus `offset`.

    It acts before the sigmoid of equation 13, so that the result stays on 1..5. It is fitted on validation data
    (`attune_training.evaluation.calibration`).
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.offset) or not all(value > 0 for value in self.scale):
            raise ValueError(f"expected a scale above 0 and an offset for each output, not {self.scale}, {self.offset}")


TABLE_2_LORA = (LoraSettings(4, 8), LoraSettings(8, 16), LoraSettings(16, 32))
"""The adapters that the paper's Table II compares."""


@dataclass(frozen=True, slots=True)
class _ModelShape:
    """Base of the model configurations; a subclass has a `target`, as a field or as a property."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output columns."""
        return TARGET_NAMES[self.target]  # type: ignore[attr-defined]

    def to_json(self) -> str:
        """Return the configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class RegressorConfig(_ModelShape):
    """Shape of one regressor (paper, section III-C); `lora` None: frozen towers without adapters (Table I).

    With `lower_text_layers` the text stream also takes the outputs of the layers below the text tower's last one. The
    paper's does not; a sentence encoder's last layer encodes meaning, and affect is encoded in lower layers.
    `calibration` None: the outputs as they were trained.
    """

    target: Target
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    hidden_dim: int = 256
    num_heads: int = 4
    extra_audio_layers: int = 2
    extra_feedforward: int = 1024
    dropout: float = 0.1
    lower_text_layers: bool = False
    calibration: Calibration | None = None

    @classmethod
    def from_json(cls, text: str) -> RegressorConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, a field is missing or unknown, or the target is unknown.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("target") not in TARGET_NAMES:
            raise ValueError(f"regressor config: 'target' must be one of {', '.join(TARGET_NAMES)}")
        raw["audio"] = AudioTowerConfig(**_checked(AudioTowerConfig, raw.get("audio")))
        raw["text"] = TextTowerConfig(**_checked(TextTowerConfig, raw.get("text"), {"kind": "bert"}))
        raw["lora"] = None if raw.get("lora", ...) is None else _lora_settings(raw.get("lora"))
        raw["calibration"] = _calibration(raw.get("calibration"), TARGET_NAMES[raw["target"]])
        return cls(**_checked(cls, raw))


@dataclass(frozen=True, slots=True)
class UnimodalConfig(_ModelShape):
    """Shape of one unimodal baseline (paper, section IV-B), which predicts all three dimensions from audio alone.

    The paper gives no sizes. These are those of the regressor's audio stream, so that the rows of Table I differ in the
    architecture alone.
    """

    architecture: UnimodalName
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    hidden_dim: int = 256
    num_layers: int = 2
    feedforward: int = 1024
    dropout: float = 0.1

    @property
    def target(self) -> Target:
        """All three dimensions."""
        return "valence_arousal_dominance"

    @classmethod
    def from_json(cls, text: str) -> UnimodalConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, a field is missing or unknown, or the architecture is unknown.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("architecture") not in get_args(UnimodalName):
            raise ValueError(f"unimodal config: 'architecture' must be one of {', '.join(get_args(UnimodalName))}")
        raw["audio"] = AudioTowerConfig(**_checked(AudioTowerConfig, raw.get("audio")))
        return cls(**_checked(cls, raw))


ModelConfig = RegressorConfig | UnimodalConfig


def config_from_json(text: str) -> ModelConfig:
    """Read either configuration; a unimodal one is recognised by its field `architecture`.

    Raises:
        ValueError: the text is neither configuration.
    """
    raw = json.loads(text)
    if isinstance(raw, dict) and "architecture" in raw:
        return UnimodalConfig.from_json(text)
    return RegressorConfig.from_json(text)


def architecture_configs(name: ArchitectureName, reference: RegressorConfig) -> tuple[ModelConfig, ...]:
    """Return the models of one row of Table I, on the towers and with the sizes of `reference`, without adapters.

    They are one model, or two where valence is trained apart from arousal and dominance.

    Raises:
        ValueError: the architecture is unknown.
    """
    if name in get_args(UnimodalName):
        unimodal = UnimodalConfig(
            name,  # type: ignore[arg-type]
            audio=reference.audio,
            hidden_dim=reference.hidden_dim,
            num_layers=reference.extra_audio_layers,
            feedforward=reference.extra_feedforward,
            dropout=reference.dropout,
        )
        return (unimodal,)
    if name == "cross-modal-joint":
        return (replace(reference, target="valence_arousal_dominance", lora=None),)
    if name == "cross-modal-separate":
        return (
            replace(reference, target="valence", lora=None),
            replace(reference, target="arousal_dominance", lora=None),
        )
    raise ValueError(f"architecture {name!r} is unknown; choose from {', '.join(get_args(ArchitectureName))}")


def _lora_settings(raw: object) -> LoraSettings:
    lora = _checked(LoraSettings, raw, {"text_layers": None})
    modules = {name: tuple(lora[name]) for name in ("audio_modules", "text_modules")}
    return LoraSettings(**{**lora, **modules})


def _calibration(raw: object, names: tuple[str, ...]) -> Calibration | None:
    """Return the calibration; models saved before there was one lack the field."""
    if raw is None:
        return None
    fields = _checked(Calibration, raw)
    calibration = Calibration(tuple(fields["scale"]), tuple(fields["offset"]))
    if len(calibration.scale) != len(names):
        raise ValueError(f"Calibration: {len(names)} outputs, {', '.join(names)}, and {len(calibration.scale)} scales")
    return calibration


def _checked(kind: type, raw: object, added: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return `raw` if its keys are exactly the fields of `kind`; models saved earlier may lack those of `added`."""
    names = {item.name for item in dataclasses.fields(kind)}
    raw = {**(added or {}), **raw} if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or set(raw) != names:
        found = sorted(raw) if isinstance(raw, dict) else raw
        raise ValueError(f"{kind.__name__}: expected exactly the fields {sorted(names)}, found {found}")
    return raw


def embedded_config(target: Target) -> RegressorConfig:
    """Return the `embedded` profile's model: Whisper base's encoder and all-mpnet-base-v2, of the size of BERT-base.

    Adapters are in the last six of mpnet's twelve layers.
    """
    text = TextTowerConfig("mpnet", 768, num_layers=12, num_heads=12, feedforward=3072, vocab_size=30_527)
    lora = LoraSettings(text_layers=6).for_text("mpnet")
    return RegressorConfig(target, text=text, lora=lora, lower_text_layers=True)


def embedded_minilm_config(target: Target) -> RegressorConfig:
    """Return the `embedded` profile's model with all-MiniLM-L6-v2, a fifth of the size, in mpnet's place."""
    return RegressorConfig(target, lower_text_layers=True)


def paper_config(target: Target) -> RegressorConfig:
    """Return the paper's model: HuBERT-base and BERT-base-uncased, both 768 wide (section III-C2)."""
    base = {"width": 768, "num_layers": 12, "num_heads": 12, "feedforward": 3072}
    return RegressorConfig(
        target,
        audio=AudioTowerConfig(kind="hubert", **base),  # type: ignore[arg-type]
        text=TextTowerConfig(**base),  # type: ignore[arg-type]
        extra_feedforward=3072,
    )


def tiny_config(
    target: Target, kind: Literal["whisper", "hubert"] = "whisper", text: Literal["bert", "mpnet"] = "bert"
) -> RegressorConfig:
    """Return a configuration small enough for tests: hidden sizes of 16 to 64 and a vocabulary of 100 tokens."""
    return RegressorConfig(
        target,
        audio=AudioTowerConfig(
            kind,
            width=32,
            num_layers=2,
            num_heads=4,
            feedforward=64,
            conv_channels=16,
            position_kernel=16,
            position_groups=4,
        ),
        text=TextTowerConfig(text, width=24, num_layers=2, num_heads=4, feedforward=48, vocab_size=100),
        lora=LoraSettings(rank=2, alpha=4).for_text(text),
        hidden_dim=16,
        num_heads=2,
        extra_feedforward=64,
    )
