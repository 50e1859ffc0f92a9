"""Configurations of the regressors: frozen, typed, and exact in JSON.

A configuration says everything about a model's shape, so that a model can be built without its pretrained
weights (random towers for tests) and a saved one can be rebuilt and checked name by name.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "SAMPLE_RATE",
    "TARGET_NAMES",
    "AudioTowerConfig",
    "LoraSettings",
    "PretrainedSources",
    "RegressorConfig",
    "Target",
    "TextTowerConfig",
    "embedded_config",
    "paper_config",
    "tiny_config",
]

SAMPLE_RATE = 16_000
"""Sampling rate of every waveform the regressors see, in Hz."""

Target = Literal["valence", "arousal_dominance", "valence_arousal_dominance"]

TARGET_NAMES: dict[str, tuple[str, ...]] = {
    "valence": ("valence",),
    "arousal_dominance": ("arousal", "dominance"),
    "valence_arousal_dominance": ("valence", "arousal", "dominance"),
}
"""The dimensions that a model of each target predicts, in the order of its output columns.

The paper serves the first two (section III-C); the third is the joint model of Table I.
"""


@dataclass(frozen=True, slots=True)
class PretrainedSources:
    """Where the frozen towers' weights are.

    ``audio`` is OpenAI's Whisper checkpoint file (``tiny.en.pt``) for a ``whisper`` tower, or a folder of
    transformers' HuBERT for a ``hubert`` tower. ``text`` is a folder of transformers' BERT.
    """

    audio: Path
    text: Path


@dataclass(frozen=True, slots=True)
class AudioTowerConfig:
    """Shape of the audio tower; the defaults are Whisper tiny's encoder.

    ``max_samples`` is the longest waveform (8 s in the paper). With ``layer_mix`` the tower returns a learned
    softmax mix of all its layers' outputs in place of the last one.
    """

    kind: Literal["whisper", "hubert"] = "whisper"
    width: int = 384
    num_layers: int = 4
    num_heads: int = 6
    feedforward: int = 1536
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
    """Shape of the text tower, a BERT; the defaults are all-MiniLM-L6-v2's."""

    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    feedforward: int = 1536
    vocab_size: int = 30_522
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (paper, equations 1-2): the scale of the update is ``alpha / rank``."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    audio_modules: tuple[str, ...] = ("q_proj", "v_proj")
    text_modules: tuple[str, ...] = ("query", "value")


@dataclass(frozen=True, slots=True)
class RegressorConfig:
    """Shape of one regressor (paper, section III-C); ``lora`` None leaves the towers frozen as they are (Table I)."""

    target: Target
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    hidden_dim: int = 256
    num_heads: int = 4
    extra_audio_layers: int = 2
    extra_feedforward: int = 768
    dropout: float = 0.1

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output columns."""
        return TARGET_NAMES[self.target]

    def to_json(self) -> str:
        """Return the configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RegressorConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not JSON, a field is missing or unknown, or the target is unknown.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("target") not in TARGET_NAMES:
            raise ValueError(f"regressor config: 'target' must be one of {', '.join(TARGET_NAMES)}")
        raw["audio"] = AudioTowerConfig(**_checked(AudioTowerConfig, raw.get("audio")))
        raw["text"] = TextTowerConfig(**_checked(TextTowerConfig, raw.get("text")))
        raw["lora"] = None if raw.get("lora", ...) is None else _lora_settings(raw.get("lora"))
        return cls(**_checked(cls, raw))


def _lora_settings(raw: object) -> LoraSettings:
    lora = _checked(LoraSettings, raw)
    modules = {name: tuple(lora[name]) for name in ("audio_modules", "text_modules")}
    return LoraSettings(**{**lora, **modules})


def _checked(kind: type, raw: object) -> dict[str, Any]:
    """Return ``raw`` if its keys are exactly the fields of ``kind``."""
    names = {item.name for item in dataclasses.fields(kind)}
    if not isinstance(raw, dict) or set(raw) != names:
        found = sorted(raw) if isinstance(raw, dict) else raw
        raise ValueError(f"{kind.__name__}: expected exactly the fields {sorted(names)}, found {found}")
    return raw


def embedded_config(target: Target) -> RegressorConfig:
    """Return the ``embedded`` profile's model: Whisper tiny.en's encoder and all-MiniLM-L6-v2."""
    return RegressorConfig(target)


def paper_config(target: Target) -> RegressorConfig:
    """Return the paper's model: HuBERT-base and BERT-base-uncased, both 768 wide (section III-C2)."""
    base = {"width": 768, "num_layers": 12, "num_heads": 12, "feedforward": 3072}
    return RegressorConfig(
        target,
        audio=AudioTowerConfig(kind="hubert", **base),  # type: ignore[arg-type]
        text=TextTowerConfig(**base),
        extra_feedforward=3072,
    )


def tiny_config(target: Target, kind: Literal["whisper", "hubert"] = "whisper") -> RegressorConfig:
    """Return a model small enough for a test: the same layers, a few dozen wide, random weights, 100 tokens."""
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
        text=TextTowerConfig(width=24, num_layers=2, num_heads=4, feedforward=48, vocab_size=100),
        lora=LoraSettings(rank=2, alpha=4),
        hidden_dim=16,
        num_heads=2,
        extra_feedforward=64,
    )
