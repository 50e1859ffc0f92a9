"""Building blocks of the regressors: masked multi-head attention, encoder layer, gate and pooling.

Attention is based on `scaled_dot_product_attention` because `nn.MultiheadAttention` and the fast path of
`nn.TransformerEncoderLayer` do not export with dynamic lengths.

Dimensions: B batch, Q queries, K keys, F audio frames, L tokens, d hidden size. Padding masks are boolean, true at
positions that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AttentionPooling",
    "EncoderLayer",
    "MultiHeadAttention",
    "SigmoidGate",
    "attend",
    "full_precision",
    "length_mask",
    "masked_mean",
    "to_vad_scale",
]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that disables autocast on `device`; a null context where it has none."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return [B, size], true at the first `lengths` [B, 1] positions of each row."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return [B, d], the mean of values [B, L, d] where mask [B, L] is true (paper, equation 12)."""
    weights = mask.to(values.dtype).unsqueeze(-1)  # [B, L, 1]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def to_vad_scale(raw: Tensor) -> Tensor:
    """Map raw outputs to 1..5: 1 + 4 sigmoid(raw) (paper, equation 13)."""
    return 1.0 + 4.0 * torch.sigmoid(raw)


def attend(attention: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """Return `attention(query, key, value, **options)`, in float32 where a CPU's autocast would take bfloat16.

    The backward pass of attention on a CPU takes three times as long in bfloat16 as in float32.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return attention(query, key, value, **options)
    with torch.autocast("cpu", enabled=False):
        return attention(query.float(), key.float(), value.float(), **options)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (paper, equations 5-6), without attention dropout, which excludes the fused kernels."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Attend from queries [B, Q, d] to context [B, K, d] where context_mask [B, K] is true; return [B, Q, d]."""
        attended = attend(
            functional.scaled_dot_product_attention,
            self._split(self.query(queries)),
            self._split(self.key(context)),
            self._split(self.value(context)),
            attn_mask=context_mask[:, None, None, :],
        )  # [B, heads, Q, d / heads]
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, *, d / heads]


class EncoderLayer(nn.Module):
    """A pre-norm transformer encoder layer (paper, section III-C4: the audio enhancement layers)."""

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Map values [B, F, d] to [B, F, d], attending only where mask [B, F] is true."""
        normed = self.attention_norm(values)
        values = values + self.dropout(self.attention(normed, normed, mask))
        hidden = functional.gelu(self.expand(self.feedforward_norm(values)))
        return values + self.dropout(self.contract(self.dropout(hidden)))


class SigmoidGate(nn.Module):
    """Gate a projection by itself and its cross-attention output (paper, equations 7-10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, projection: Tensor, attended: Tensor) -> Tensor:
        """Return projection * sigmoid(W [projection; attended] + b), all [B, *, d]."""
        return projection * torch.sigmoid(self.linear(torch.cat([projection, attended], dim=-1)))


class AttentionPooling(nn.Module):
    """Attention pooling: a sum over time with learned weights (paper, equation 11)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Pool values [B, F, d] to [B, d]; frames where mask [B, F] is false have weight zero."""
        scores = self.score(torch.tanh(self.hidden(values))).squeeze(-1)  # [B, F]
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
        return (values * weights.unsqueeze(-1)).sum(dim=1)
