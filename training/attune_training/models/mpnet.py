"""MPNet as a text tower: transformers' weights and layers, with attention that runs fused and exports.

Two things differ from transformers' own forward pass, and no output of a real token does. Positions are counted from
the first column, so that they do not depend on which token fills the padding (transformers counts the tokens that are
not `<pad>`). And the bias of relative positions and the mask are one bias of scaled dot-product attention.

Dimensions: B batch, L tokens, D hidden size, H heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import MPNetConfig, MPNetModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from attune_training.config import TextTowerConfig
from attune_training.models.layers import attend

__all__ = ["MpnetEncoder", "mpnet_config"]

_PAD = 1
"""Token id of `<pad>`, and the position of padding; real tokens' positions begin after it."""


def mpnet_config(config: TextTowerConfig) -> MPNetConfig:
    """Return transformers' configuration of a tower of this shape."""
    return MPNetConfig(
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feedforward,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_tokens + _PAD + 1,
        layer_norm_eps=1e-5,
        attention_probs_dropout_prob=0.0,
    )


class MpnetEncoder(MPNetModel):
    """MPNet without its pooler; parameters have the names that they have in `MPNetModel`."""

    buckets: Tensor

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        for layer in self.encoder.layer:
            layer.attention.attn = _SelfAttention(config)  # type: ignore[union-attr]
        self.farthest = config.max_position_embeddings - _PAD - 2
        distances = torch.arange(-self.farthest, self.farthest + 1)
        # From torch, once: a logarithm of another library may put a distance into the next bucket.
        buckets = MPNetEncoder.relative_position_bucket(distances, num_buckets=config.relative_attention_num_buckets)
        self.register_buffer("buckets", buckets, persistent=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [B, L, D] of input_ids [B, L]."""
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded: Tensor = self.embeddings(input_ids=input_ids, position_ids=(columns + _PAD + 1)[None])
        return embedded

    def attention_bias(self, attention_mask: Tensor) -> Tensor:
        """Return what is added to the scores, [B, H, L, L]: the relative positions' bias, and no weight on padding."""
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        by_distance = self.encoder.relative_attention_bias(self.buckets)  # [2 * farthest + 1, H]
        distance = columns[None, :] - columns[:, None] + self.farthest  # [L, L]
        bias = by_distance[distance].permute(2, 0, 1)[None]  # [1, H, L, L]
        return bias.masked_fill(attention_mask[:, None, None, :] <= 0, torch.finfo(bias.dtype).min)


class _SelfAttention(MPNetSelfAttention):
    """MPNet's self-attention by the fused kernel, without attention dropout, which excludes it."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: None = None, position_bias: Tensor | None = None, **options: Any
    ) -> tuple[Tensor]:
        """Return the output [B, L, D] of hidden_states [B, L, D]; position_bias [B, H, L, L] includes the mask."""
        attended = attend(
            partial(_biased_attention, position_bias),
            self._split(self.q(hidden_states)),
            self._split(self.k(hidden_states)),
            self._split(self.v(hidden_states)),
        )  # [B, H, L, D / H]
        return (self.o(attended.transpose(1, 2).flatten(2)),)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)  # [B, H, L, D / H]


def _biased_attention(bias: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with `bias` added to the scores; mixed precision may have left it in another dtype."""
    mask = None if bias is None else bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
