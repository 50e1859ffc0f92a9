"""The regressors of the paper (section III-C): valence, arousal with dominance, and all three jointly.

Audio: tower, further transformer layers, LayerNorm, projection to d, cross-attention to the text, gate, attention
pooling. Text: tower, projection to d, cross-attention to the audio, gate, masked mean. Both: fusion,
shared layer, output.

Dimensions: B batch, T samples, F frames, L tokens, D hidden size of a tower, d hidden size, N outputs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from attune_training.config import (
    AudioTowerConfig,
    LoraSettings,
    PretrainedSources,
    RegressorConfig,
    TextTowerConfig,
    embedded_config,
    paper_config,
)
from attune_training.models.layers import (
    AttentionPooling,
    EncoderLayer,
    MultiHeadAttention,
    SigmoidGate,
    masked_mean,
    to_vad_scale,
)
from attune_training.models.towers import AudioTower, TextTower, build_audio_tower

__all__ = [
    "AUDIO_STREAM",
    "TEXT_STREAM",
    "AudioTowerConfig",
    "EmotionModel",
    "LoraSettings",
    "OutputStages",
    "Pooled",
    "PretrainedSources",
    "Regressor",
    "RegressorConfig",
    "TextTowerConfig",
    "build_regressor",
    "embedded_config",
    "merge_adapters",
    "paper_config",
]


AUDIO_STREAM = ("audio_tower", "audio_layers", "audio_norm", "audio_projection")
"""Submodules of the audio stream, up to the cross-attention."""

TEXT_STREAM = ("text_tower", "text_projection", "lower_text_projection")
"""Submodules of the text stream, up to the cross-attention."""


class OutputStages(nn.Module):
    """Fusion 2d -> d, shared d -> d, output d -> 1 for one dimension (paper, section III-C7)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fusion = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Dropout(dropout))
        self.shared = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.output = nn.Linear(width, 1)

    def forward(self, fused: Tensor) -> Tensor:
        """Map [B, 2d] to a raw output [B, 1]; `to_vad_scale` puts it on 1..5."""
        raw: Tensor = self.output(self.shared(self.fusion(fused)))
        return raw


class Pooled(NamedTuple):
    """Both streams after pooling over time."""

    audio: Tensor  # [B, d]
    text: Tensor  # [B, d]


class EmotionModel(nn.Module, ABC):
    """Base of the models of the paper's tables: an audio tower, streams pooled over time, and a regression head."""

    audio_tower: AudioTower

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Tensor:
        """Predict from speech and its transcript.

        Args:
            waveform: [B, T] float32, 16 kHz mono; see `AudioTower.forward`.
            num_samples: [B, 1] int64, true lengths in samples.
            input_ids: [B, L] int64, tokens of the text tower's own vocabulary.
            attention_mask: [B, L] int64, 1 where a token is real.
            audio_present: [B] float, 0 where the audio stream is masked out (training on text alone).

        Returns:
            [B, N] in 1..5, columns as `config.output_names`.

        Raises:
            ValueError: T is out of the tower's range.
        """
        features, frame_mask = self.audio_tower(waveform, num_samples)
        return self.predict(features, frame_mask, input_ids, attention_mask, audio_present)

    def predict(
        self,
        features: Tensor,
        frame_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Tensor:
        """Predict [B, N] from the audio tower's features [B, F, D] and frame_mask [B, F], and the tokens."""
        return self.regress(self.pool(features, frame_mask, input_ids, attention_mask, audio_present))

    @abstractmethod
    def pool(
        self,
        features: Tensor,
        frame_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Pooled:
        """Return the streams pooled over time; the arguments are those of `predict`."""

    @abstractmethod
    def regress(self, pooled: Pooled) -> Tensor:
        """Predict [B, N] in 1..5 from the pooled streams."""


class Regressor(EmotionModel):
    """Predict the configured dimensions from audio and text."""

    def __init__(self, config: RegressorConfig, sources: PretrainedSources | None) -> None:
        super().__init__()
        self.config = config
        width, d = config.audio.width, config.hidden_dim
        self.audio_tower = build_audio_tower(config.audio, sources.audio if sources else None)
        self.text_tower = TextTower(config.text, sources.text if sources else None)
        self.audio_layers = nn.ModuleList(
            EncoderLayer(width, config.audio.num_heads, config.extra_feedforward, config.dropout)
            for _ in range(config.extra_audio_layers)
        )
        self.audio_norm = nn.LayerNorm(width)
        self.audio_projection = nn.Linear(width, d)
        self.text_projection = nn.Linear(config.text.width, d)
        self.lower_text_projection = _lower_text_projection(config)
        self.audio_to_text = MultiHeadAttention(d, config.num_heads)
        self.text_to_audio = MultiHeadAttention(d, config.num_heads)
        self.audio_gate = SigmoidGate(d)
        self.text_gate = SigmoidGate(d)
        self.audio_pooling = AttentionPooling(d)
        self.stages = nn.ModuleDict({name: OutputStages(d, config.dropout) for name in config.output_names})
        if config.lora is not None:
            _add_adapters(self, config.lora)

    def pool(
        self,
        features: Tensor,
        frame_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Pooled:
        """Return both streams after cross-attention to each other, gating and pooling over time."""
        for layer in self.audio_layers:
            features = layer(features, frame_mask)
        audio = self.project_audio(features)  # [B, F, d]
        text = self.project_text(self.text_tower.layers(input_ids, attention_mask))  # [B, L, d]
        return self.join(audio, text, frame_mask, attention_mask > 0, audio_present)

    def join(
        self,
        audio: Tensor,
        text: Tensor,
        frame_mask: Tensor,
        token_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Pooled:
        """Return both streams pooled, of their projections audio [B, F, d] and text [B, L, d] and their masks."""
        a2t = self.audio_to_text(audio, text, token_mask)  # [B, F, d], equation 3
        t2a = self.text_to_audio(text, audio, frame_mask)  # [B, L, d], equation 4
        if audio_present is not None:
            t2a = t2a * audio_present[:, None, None]
        pooled_audio = self.audio_pooling(self.audio_gate(audio, a2t), frame_mask)
        pooled_text = masked_mean(self.text_gate(text, t2a), token_mask)
        if audio_present is not None:
            pooled_audio = pooled_audio * audio_present[:, None]
        return Pooled(pooled_audio, pooled_text)

    def regress(self, pooled: Pooled) -> Tensor:
        """Predict [B, N] from the pooled streams."""
        return to_vad_scale(self.calibrated(self.raw_outputs(pooled)))

    def raw_outputs(self, pooled: Pooled) -> Tensor:
        """Return [B, N] before calibration and the sigmoid of equation 13."""
        fused = torch.cat(pooled, dim=-1)  # [B, 2d]
        return torch.cat([stages(fused) for stages in self.stages.values()], dim=-1)

    def calibrated(self, raw: Tensor) -> Tensor:
        """Return raw outputs [B, N] after the configured calibration."""
        found = self.config.calibration
        if found is None:
            return raw
        return raw * raw.new_tensor(found.scale) + raw.new_tensor(found.offset)

    def project_audio(self, features: Tensor) -> Tensor:
        """Return the audio stream [B, F, d] of what the last of its layers left, [B, F, D]."""
        projected: Tensor = self.audio_projection(self.audio_norm(features))
        return projected

    def project_text(self, outputs: list[Tensor]) -> Tensor:
        """Return the text stream [B, L, d] of the tower's embeddings and layers' outputs, each [B, L, D].

        Without `lower_text_layers` the last one is enough.
        """
        *lower, last = outputs
        text: Tensor = self.text_projection(last)
        if self.lower_text_projection is None:
            return text
        normed = [functional.layer_norm(layer, (layer.shape[-1],)) for layer in lower]
        return text + self.lower_text_projection(torch.cat(normed, dim=-1))


def _lower_text_projection(config: RegressorConfig) -> nn.Linear | None:
    """Return the projection of the lower layers, initialised to zero so that a warm start keeps the outputs."""
    if not config.lower_text_layers:
        return None
    projection = nn.Linear(config.text.width * config.text.num_layers, config.hidden_dim, bias=False)
    nn.init.zeros_(projection.weight)
    return projection


def _add_adapters(model: Regressor, lora: LoraSettings) -> None:
    """Inject LoRA into both towers (paper, section III-C2); raises ValueError where it does not fit them."""
    layers = _adapted_text_layers(lora.text_layers, model.config.text.num_layers)
    for module, names, indices in (
        (model.audio_tower.adapted_module(), lora.audio_modules, None),
        (model.text_tower.encoder, lora.text_modules, layers),
    ):
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(names),
            layers_to_transform=indices,
        )
        inject_adapter_in_model(settings, module)


def _adapted_text_layers(last: int | None, num_layers: int) -> list[int] | None:
    """Return the indices of the last so many layers; None: all."""
    if last is None:
        return None
    if not 1 <= last <= num_layers:
        raise ValueError(f"text_layers is {last}; the text tower has {num_layers} layers, and at least one is adapted")
    return list(range(num_layers - last, num_layers))


def build_regressor(config: RegressorConfig, sources: PretrainedSources | None) -> Regressor:
    """Return a regressor with new adapters and head; `sources` None: towers with random weights.

    Raises:
        ValueError: the pretrained weights are not there or do not fit the configuration.
    """
    return Regressor(config, sources)


def merge_adapters(model: Regressor) -> Regressor:
    """Return a copy with W + BA in place of every adapted W (paper, equation 1): plain layers, the same outputs.

    A model without adapters is copied unchanged.
    """
    merged = copy.deepcopy(model)
    adapted = [(name, module) for name, module in merged.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged
