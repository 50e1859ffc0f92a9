"""MusicGen's decoder, a step at a time over slots: preallocated key-value cache, fused projections, no Python per head.

A slot has two rows: one that hears the text, one that does not (classifier-free guidance). The second row's
cross-attention is over nothing, and without biases nothing comes of it, so it is left out.

Letters: S slots, H heads, E width of a head, D = H E, K codebooks, V vocabulary, T text tokens, P positions of a
prefill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Decoder", "DecoderShape", "KeyValueCache"]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the cache and the loop have to know of a decoder."""

    layers: int
    heads: int
    width: int
    feedforward: int
    codebooks: int
    vocabulary: int
    channels: int
    max_positions: int
    pad: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read transformers' `MusicgenDecoderConfig`."""
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            width=config.hidden_size,
            feedforward=config.ffn_dim,
            codebooks=config.num_codebooks,
            vocabulary=config.vocab_size,
            channels=config.audio_channels,
            max_positions=config.max_position_embeddings,
            pad=config.vocab_size,
        )

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads


class KeyValueCache:
    """Keys and values of every slot: of the music so far, and of the text.

    `self_keys` and `self_values` are [layers, slots, 2, H, max_positions, E], the third axis the two rows of a slot: so
    the rows of the first slots are one stretch of memory, which attention reads where it lies. `text_keys` and
    `text_values` are [layers, slots, H, max_text, E]; `text_mask` is [slots, max_text].
    """

    def __init__(
        self, shape: DecoderShape, slots: int, positions: int, max_text: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        music = (shape.layers, slots, 2, shape.heads, positions, shape.head_width)
        text = (shape.layers, slots, shape.heads, max_text, shape.head_width)
        self.self_keys = torch.zeros(music, dtype=dtype, device=device)
        self.self_values = torch.zeros(music, dtype=dtype, device=device)
        self.text_keys = torch.zeros(text, dtype=dtype, device=device)
        self.text_values = torch.zeros(text, dtype=dtype, device=device)
        self.text_mask = torch.zeros(slots, max_text, dtype=torch.bool, device=device)

    @property
    def slots(self) -> int:
        """How many requests fit at a time."""
        return self.text_mask.shape[0]

    @property
    def positions(self) -> int:
        """How many positions a slot holds."""
        return self.self_keys.shape[4]

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        tensors = (self.self_keys, self.self_values, self.text_keys, self.text_values, self.text_mask)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def swap(self, first: int, second: int, used: int) -> None:
        """Exchange two slots, of which `used` positions hold anything."""
        for tensor in (self.self_keys, self.self_values):
            _exchange(tensor[:, :, :, :, :used], 1, first, second)
        for tensor, axis in ((self.text_keys, 1), (self.text_values, 1), (self.text_mask, 0)):
            _exchange(tensor, axis, first, second)


def _exchange(tensor: Tensor, axis: int, first: int, second: int) -> None:
    one, other = tensor.select(axis, first), tensor.select(axis, second)
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


class DecoderLayer(nn.Module):
    """One layer, its query, key and value projections fused."""

    def __init__(self, source: Any, heads: int) -> None:
        """Take the weights of transformers' `MusicgenDecoderLayer`."""
        super().__init__()
        attention, text = source.self_attn, source.encoder_attn
        self.heads = heads
        self.attention_norm = source.self_attn_layer_norm
        self.query_key_value = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.out_proj
        self.text_norm = source.encoder_attn_layer_norm
        self.text_query = text.q_proj
        self.text_key_value = _fused(text.k_proj, text.v_proj)
        self.text_output = text.out_proj
        self.feedforward_norm = source.final_layer_norm
        self.expand, self.contract = source.fc1, source.fc2
        self.activation = source.activation_fn

    def text_memory(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [H, T, E] of text [T, D]."""
        keys, values = self.text_key_value(text).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [..., H, E] of hidden [..., D]."""
        fused = self.query_key_value(self.attention_norm(hidden))
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in fused.chunk(3, dim=-1))
        return query, key, value

    def hear_text(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What text says to hidden [S, Q, D]: keys and values [S, H, T, E], mask [S, T]."""
        query = self.text_query(self.text_norm(hidden)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None, :])
        return self.text_output(attended.transpose(1, 2).flatten(2))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The layer's last block."""
        return self.contract(self.activation(self.expand(self.feedforward_norm(hidden))))

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(0, 1)


class Decoder(nn.Module):
    """The decoder with its embeddings and heads, made from transformers' `MusicgenForCausalLM`."""

    positions: Tensor
    offsets: Tensor

    def __init__(self, source: Any, max_positions: int | None = None) -> None:
        """Take over the weights of `source`; `max_positions` is the longest context, its own by default."""
        super().__init__()
        decoder = source.model.decoder
        self.shape = DecoderShape.of(source.config)
        self.layers = nn.ModuleList(DecoderLayer(layer, self.shape.heads) for layer in decoder.layers)
        self.norm = decoder.layer_norm
        embeddings = torch.cat([table.weight.detach() for table in decoder.embed_tokens])  # [K (V + 1), D]
        self.embedding = nn.Embedding.from_pretrained(embeddings)
        self.heads = _fused(*source.lm_heads)  # D -> K V
        sinusoids = _sinusoids(max_positions or self.shape.max_positions, self.shape.width)
        self.register_buffer("positions", sinusoids.to(embeddings.dtype), persistent=False)
        offsets = torch.arange(self.shape.codebooks) * (self.shape.vocabulary + 1)
        self.register_buffer("offsets", offsets, persistent=False)
        self.eval().requires_grad_(False)

    def set_text(self, cache: KeyValueCache, slot: int, text: Tensor) -> None:
        """Give a slot its text: hidden states [T, D] of the text encoder, projected; one row of zeros for no text."""
        length = text.shape[0]
        cache.text_mask[slot] = False
        cache.text_mask[slot, :length] = True
        for index, layer in enumerate(self._stack):
            keys, values = layer.text_memory(text)
            cache.text_keys[index, slot, :, :length] = keys
            cache.text_values[index, slot, :, :length] = values

    def step(self, cache: KeyValueCache, tokens: Tensor, position: Tensor, used: int, guidance: Tensor) -> Tensor:
        """One step of the first S slots.

        Args:
            cache: it gets the step's keys and values.
            tokens: [S, K], the tokens at `position`.
            position: [S] int64, where each slot is.
            used: more than every position: how much of the cache is looked at.
            guidance: [S], the scale of classifier-free guidance; 1 is none.

        Returns:
            logits [S, K, V] of the next tokens.
        """
        slots = tokens.shape[0]
        hidden = self._embed(tokens) + self.positions[position]  # [S, D]
        hidden = torch.stack([hidden, hidden], dim=1)  # [S, 2, D]
        visible = torch.arange(used, device=position.device)[None, :] <= position[:, None]  # [S, used]
        visible = visible.repeat_interleave(2, dim=0)[:, None, None, :]  # [2 S, 1, 1, used]
        text_mask = cache.text_mask[:slots]
        rows = torch.arange(slots, device=position.device)
        for index, layer in enumerate(self._stack):
            query, key, value = layer.project(hidden)  # [S, 2, H, E]
            keys, values = cache.self_keys[index, :slots], cache.self_values[index, :slots]
            keys[rows, :, :, position] = key
            values[rows, :, :, position] = value
            attended = functional.scaled_dot_product_attention(
                query.flatten(0, 1).unsqueeze(2),
                keys.flatten(0, 1)[:, :, :used],
                values.flatten(0, 1)[:, :, :used],
                attn_mask=visible,
            )  # [2 S, H, 1, E]
            hidden = hidden + layer.attention_output(attended.reshape(hidden.shape))
            hidden[:, :1] += layer.hear_text(
                hidden[:, :1], cache.text_keys[index, :slots], cache.text_values[index, :slots], text_mask
            )
            hidden = hidden + layer.feed_forward(hidden)
        return self._guided(self._logits(hidden), guidance)

    def prefill(self, cache: KeyValueCache, slot: int, tokens: Tensor) -> None:
        """Fill positions 0..P - 1 of a slot from tokens [K, P] at once; the next step is at position P."""
        length = tokens.shape[1]
        hidden = self._embed(tokens.T) + self.positions[:length]  # [P, D]
        hidden = torch.stack([hidden, hidden])  # [2, P, D]
        for index, layer in enumerate(self._stack):
            query, key, value = (part.transpose(1, 2) for part in layer.project(hidden))  # [2, H, P, E]
            cache.self_keys[index, slot, :, :, :length] = key
            cache.self_values[index, slot, :, :, :length] = value
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + layer.attention_output(attended.transpose(1, 2).flatten(2))
            heard = layer.hear_text(
                hidden[:1],
                cache.text_keys[index, slot : slot + 1],
                cache.text_values[index, slot : slot + 1],
                cache.text_mask[slot : slot + 1],
            )
            hidden[:1] += heard
            hidden = hidden + layer.feed_forward(hidden)

    @property
    def _stack(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)

    def _embed(self, tokens: Tensor) -> Tensor:
        """The sum of the codebooks' embeddings, [..., D] of tokens [..., K]."""
        return self.embedding(tokens + self.offsets).sum(dim=-2)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [S, 2, K, V] of hidden [S, 2, D]."""
        logits: Tensor = self.heads(self.norm(hidden))
        return logits.unflatten(-1, (self.shape.codebooks, self.shape.vocabulary))

    @staticmethod
    def _guided(logits: Tensor, guidance: Tensor) -> Tensor:
        conditional, unconditional = logits.unbind(dim=1)
        scale = guidance[:, None, None].to(logits.dtype)
        guided = unconditional + scale * (conditional - unconditional)
        return torch.where(scale > 1, guided, conditional)


def _fused(*layers: nn.Linear) -> nn.Linear:
    """One linear layer with the outputs of several, which have no biases."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    return fused


def _sinusoids(positions: int, width: int) -> Tensor:
    """MusicGen's position embeddings [positions, width]: cosines, then sines."""
    half = width // 2
    rate = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
    angle = torch.arange(positions).float()[:, None] * rate[None, :]
    table = torch.cat([angle.cos(), angle.sin()], dim=1)
    return functional.pad(table, (0, width - 2 * half))
