"""The unimodal baselines of the paper's Table I (section IV-B): audio alone, all three dimensions at once.

They consist of the regressor's audio stream: frozen tower, sequence layers, LayerNorm, projection to d, attention
pooling, and fully connected networks in place of the fusion. The paper gives no sizes, so what the architecture does
not determine is as in the regressor: `transformer` has its two encoder layers at the tower's width, `gru` a
bidirectional GRU of as many layers with half that width in each direction. `shared` is one network with three
outputs, `separate` one network for each dimension.

Dimensions: B batch, T samples, F frames, L tokens, D hidden size of the tower, d hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attune_training.config import PretrainedSources, UnimodalConfig
from attune_training.models.layers import AttentionPooling, EncoderLayer, full_precision, to_vad_scale
from attune_training.models.regressor import EmotionModel, Pooled
from attune_training.models.towers import build_audio_tower

__all__ = ["UnimodalRegressor"]


class GruLayers(nn.Module):
    """A bidirectional GRU over packed sequences, so that padding has no effect."""

    def __init__(self, width: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, num_layers, batch_first=True, dropout=dropout, bidirectional=True)

    def forward(self, features: Tensor, frame_mask: Tensor) -> Tensor:
        """Map features [B, F, D] to [B, F, D], zero where frame_mask [B, F] is false."""
        lengths, order = self.lengths(frame_mask).sort(descending=True)
        by_length, as_before = (indices.to(features.device) for indices in (order, order.argsort()))
        with full_precision(features.device):  # A GRU's weights and inputs must have the same dtype.
            packed = pack_padded_sequence(features.float()[by_length], lengths, batch_first=True)
            hidden, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=features.shape[1])
        return hidden[as_before]

    @staticmethod
    def lengths(frame_mask: Tensor) -> Tensor:
        """Return the number of frames in each row of frame_mask [B, F], as [B] on the CPU, as packing requires.

        This synchronises with the GPU, once a step.
        """
        return frame_mask.sum(dim=1).cpu()


class TransformerLayers(nn.Module):
    """The regressor's audio enhancement layers (paper, section III-C4)."""

    def __init__(self, width: int, num_layers: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, feedforward, dropout) for _ in range(num_layers))

    def forward(self, features: Tensor, frame_mask: Tensor) -> Tensor:
        """Map features [B, F, D] to [B, F, D], attending only where frame_mask [B, F] is true."""
        for layer in self.layers:
            features = layer(features, frame_mask)
        return features


class FullyConnected(nn.Sequential):
    """The fully connected network (FCN) of section IV-B: two hidden layers, then the raw outputs."""

    def __init__(self, width: int, num_outputs: int, dropout: float) -> None:
        super().__init__(
            *(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(width, num_outputs),
        )


class UnimodalRegressor(EmotionModel):
    """Predict valence, arousal and dominance from audio alone; the regressor's signature, with the tokens ignored."""

    def __init__(self, config: UnimodalConfig, sources: PretrainedSources | None) -> None:
        super().__init__()
        self.config = config
        width, d = config.audio.width, config.hidden_dim
        sequence, heads = config.architecture.split("-")
        self.audio_tower = build_audio_tower(config.audio, sources.audio if sources else None)
        self.audio_layers = (
            GruLayers(width, config.num_layers, config.dropout)
            if sequence == "gru"
            else TransformerLayers(width, config.num_layers, config.audio.num_heads, config.feedforward, config.dropout)
        )
        self.audio_norm = nn.LayerNorm(width)
        self.audio_projection = nn.Linear(width, d)
        self.audio_pooling = AttentionPooling(d)
        outputs = {"all": 3} if heads == "shared" else dict.fromkeys(config.output_names, 1)
        self.heads = nn.ModuleDict({name: FullyConnected(d, count, config.dropout) for name, count in outputs.items()})

    def pool(
        self,
        features: Tensor,
        frame_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_present: Tensor | None = None,
    ) -> Pooled:
        """Return the pooled audio stream, zero where `audio_present` is 0, and an empty text stream [B, 0]."""
        hidden = self.audio_projection(self.audio_norm(self.audio_layers(features, frame_mask)))  # [B, F, d]
        pooled = self.audio_pooling(hidden, frame_mask)
        if audio_present is not None:
            pooled = pooled * audio_present[:, None]
        return Pooled(audio=pooled, text=pooled.new_zeros(len(pooled), 0))

    def regress(self, pooled: Pooled) -> Tensor:
        """Predict [B, 3] from the pooled audio."""
        return to_vad_scale(torch.cat([head(pooled.audio) for head in self.heads.values()], dim=-1))
