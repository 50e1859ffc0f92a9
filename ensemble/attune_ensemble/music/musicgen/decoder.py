"""MusicGen's decoder, a step at a time over slots: preallocated key-value cache, fused projections, no Python per head.

A slot has two rows, one conditioned on the text and one unconditional (classifier-free guidance). The second row's
cross-attention is over nothing, and without biases nothing comes of it, so it is left out.

Letters: S slots, H heads, E width of a head, D = H E, K codebooks, V vocabulary, T text tokens, P positions of a
prefill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Decoder", "DecoderShape", "KeyValueCache", "exchange"]

AttentionSpan: TypeAlias = Tensor | Sequence[int]
"""What each slot attends to: a mask that is added to the scores, or how many positions of its memory."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the cache and the loop have to know of a decoder."""

    layers: int
    heads: int
    width: int
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

    `music` is [layers, slots, 2, 2, H, max_positions, E], the third axis the two rows of a slot, the fourth keys and
    values: so the rows of the first slots are one stretch of memory, which attention reads where it lies. Behind the
    last position lies one that is never read: rows that only pad the batch write there. `text` is
    [layers, slots, 2, H, max_text, E]; `text_mask` [slots, max_text] is what is added to attention's scores: 0 where
    there is text, otherwise minus infinity; `text_lengths` says on the host how much text there is.
    """

    def __init__(
        self, shape: DecoderShape, slots: int, positions: int, max_text: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        music = (shape.layers, slots, 2, 2, shape.heads, positions + 1, shape.head_width)
        text = (shape.layers, slots, 2, shape.heads, max_text, shape.head_width)
        self.music, self.text, self.text_mask = (
            torch.zeros(size, dtype=dtype, device=device) for size in (music, text, (slots, max_text))
        )
        self.text_lengths = [max_text] * slots
        self.text_length = torch.full((slots,), max_text, dtype=torch.long, device=device)

    @property
    def slots(self) -> int:
        """How many requests fit at a time."""
        return self.text_mask.shape[0]

    @property
    def positions(self) -> int:
        """How many positions a slot holds."""
        return self.music.shape[5] - 1

    def swap(self, first: int, second: int, used: int) -> None:
        """Exchange two slots, of which `used` positions hold anything."""
        exchange(self.music[..., :used, :], 1, first, second)
        exchange(self.text, 1, first, second)
        exchange(self.text_mask, 0, first, second)
        exchange(self.text_length, 0, first, second)
        lengths = self.text_lengths
        lengths[first], lengths[second] = lengths[second], lengths[first]


def exchange(tensor: Tensor, axis: int, first: int, second: int) -> None:
    """Let two places on an axis of a tensor change their values, without an index that would come from the host."""
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
        self.self_attention_norm = source.self_attn_layer_norm
        self.query_key_value = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.self_attention_output = attention.out_proj
        self.cross_attention_norm = source.encoder_attn_layer_norm
        self.cross_query = text.q_proj
        self.cross_key_value = _fused(text.k_proj, text.v_proj)
        self.cross_attention_output = text.out_proj
        self.feedforward_norm = source.final_layer_norm
        self.expand, self.contract = source.fc1, source.fc2
        self.activation = source.activation_fn

    def forward(
        self,
        hidden: Tensor,
        music: Tensor,
        text: Tensor,
        at: tuple[Tensor, Tensor],
        music_span: AttentionSpan,
        text_span: AttentionSpan,
    ) -> Tensor:
        """One step of hidden [S, 2, D]; the rest as in `self_attention` and `cross_attention`."""
        hidden = hidden + self.self_attention(hidden, music, at, music_span)
        hidden[:, :1] += self.cross_attention(hidden[:, :1], text, text_span)
        return hidden + self.feed_forward(hidden)

    def text_memory(self, text: Tensor) -> Tensor:
        """Keys and values [2, H, T, E] of text [T, D]."""
        memory: Tensor = self.cross_key_value(text).unflatten(-1, (2, self.heads, -1))
        return memory.permute(1, 2, 0, 3)

    def self_attention(self, hidden: Tensor, memory: Tensor, at: tuple[Tensor, Tensor], span: AttentionSpan) -> Tensor:
        """Causal attention of hidden [S, 2, D], whose keys and values go into the cache, memory [S, 2, 2, H, *, E].

        `at` are slots and positions, [S] each; as a mask, `span` is [2 S, 1, 1, used].
        """
        query, key_value = self._project(hidden)
        slots, positions = at
        memory[slots, :, :, :, positions] = key_value
        query = query.flatten(0, 1).unsqueeze(2)
        attended = _attend(query, memory.flatten(0, 1), span)  # [2 S, H, 1, E]
        return self.self_attention_output(attended.reshape(hidden.shape))

    def prefill_self_attention(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """The same for a whole beginning at once: hidden [2, P, D] of one slot, its memory [2, 2, H, P, E]."""
        query, key_value = self._project(hidden)
        memory.copy_(key_value.permute(0, 2, 3, 1, 4))
        keys, values = memory.unbind(1)
        attended = functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, is_causal=True)
        return self.self_attention_output(attended.transpose(1, 2).flatten(2))

    def cross_attention(self, hidden: Tensor, memory: Tensor, span: AttentionSpan) -> Tensor:
        """Attention of hidden [S, Q, D] to the text, memory [S, 2, H, T, E]; as a mask, `span` is [S, 1, 1, T]."""
        query = self.cross_query(self.cross_attention_norm(hidden)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = _attend(query, memory, span)
        return self.cross_attention_output(attended.transpose(1, 2).flatten(2))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The layer's last block."""
        return self.contract(self.activation(self.expand(self.feedforward_norm(hidden))))

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Query [..., H, E], and key and value [..., 2, H, E], of hidden [..., D]."""
        fused = self.query_key_value(self.self_attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        return fused[..., 0, :, :], fused[..., 1:, :, :]


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
        self.register_buffer("positions", sinusoids.to(embeddings), persistent=False)
        offsets = torch.arange(self.shape.codebooks, device=embeddings.device) * (self.shape.vocabulary + 1)
        self.register_buffer("offsets", offsets, persistent=False)
        self._is_compiled = False
        self.has_folded_norms = False
        self.eval().requires_grad_(False)

    def fold_norms(self) -> None:
        """Move the scale and shift of every norm into the linear layer behind it, which gets a bias.

        The norm's sums can then be made beside the layer's products (`fused`). Once is enough.
        """
        if self.has_folded_norms:
            return
        self.has_folded_norms = True
        for layer in self._stack:
            _fold(layer.self_attention_norm, layer.query_key_value)
            _fold(layer.cross_attention_norm, layer.cross_query)
            _fold(layer.feedforward_norm, layer.expand)
        _fold(self.norm, self.heads)

    def set_text(self, cache: KeyValueCache, slot: int, text: Tensor) -> None:
        """Give a slot its text: hidden states [T, D] of the text encoder, projected; one row of zeros for no text."""
        length = text.shape[0]
        cache.text_lengths[slot] = length
        cache.text_length[slot] = length
        cache.text_mask[slot, :length] = 0
        cache.text_mask[slot, length:] = -torch.inf
        for index, layer in enumerate(self._stack):
            cache.text[index, slot, :, :, :length] = layer.text_memory(text)

    def step(
        self,
        cache: KeyValueCache,
        tokens: Tensor,
        position: Tensor,
        used: int,
        guidance: Tensor,
        written: Tensor | None = None,
    ) -> Tensor:
        """One step of the first S slots.

        Args:
            cache: it gets the step's keys and values.
            tokens: [S, K], the tokens at `position`.
            position: [S] int64, where each slot is.
            used: more than every position: how much of the cache is looked at.
            guidance: [S], the scale of classifier-free guidance; 1 is none.
            written: [S] int64, where keys and values go if not to `position`.

        Returns:
            logits [S, K, V] of the next tokens, float32.
        """
        slots = tokens.shape[0]
        hidden = self._embed(tokens) + self.positions[position]  # [S, D]
        hidden = torch.stack([hidden, hidden], dim=1)  # [S, 2, D]
        music_span, text_span = self._spans(cache, position, used, captured=written is not None)
        at = (torch.arange(slots, device=position.device), position if written is None else written)
        for index, layer in enumerate(self._stack):
            hidden = layer(hidden, cache.music[index, :slots], cache.text[index, :slots], at, music_span, text_span)
        return self._guided(self._logits(hidden), guidance)

    def prefill(self, cache: KeyValueCache, slot: int, tokens: Tensor) -> None:
        """Fill positions 0..P - 1 of a slot from tokens [K, P] at once; the next step is at position P."""
        length = tokens.shape[1]
        hidden = self._embed(tokens.T) + self.positions[:length]  # [P, D]
        hidden = torch.stack([hidden, hidden])  # [2, P, D]
        for index, layer in enumerate(self._stack):
            hidden = hidden + layer.prefill_self_attention(hidden, cache.music[index, slot, ..., :length, :])
            hidden[:1] += layer.cross_attention(hidden[:1], cache.text[index, slot][None], [cache.text_lengths[slot]])
            hidden = hidden + layer.feed_forward(hidden)

    def compile_layers(self, backend: str = "inductor") -> None:
        """Let torch.compile fuse what lies between the matrix products of a step.

        All layers share what is compiled, once for each number of rows and bucket of context: sizes that are variable
        make inductor fail on the cache, which it sees changed in place.
        """
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = 1024
        self._is_compiled = True
        for layer in self._stack:
            layer.compile(backend=backend, dynamic=False)

    def _spans(
        self, cache: KeyValueCache, position: Tensor, used: int, *, captured: bool
    ) -> tuple[AttentionSpan, AttentionSpan]:
        """What each of the first S slots attends to of its music and its text.

        On a CPU exactly its own positions: the sum of a longer row rounds differently even where all of that is masked,
        and a request must not depend on its neighbours' lengths. Elsewhere, and where a step is captured, the host must
        not look at `position`.
        """
        slots = len(position)
        if position.device.type == "cpu" and not self._is_compiled and not captured:
            return [place + 1 for place in position.tolist()], cache.text_lengths[:slots]
        return _mask(position, used, self.embedding.weight.dtype), cache.text_mask[:slots, None, None, :]

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
        # In float32: guidance multiplies the small difference of two large numbers.
        conditional, unconditional = logits.float().unbind(dim=1)
        scale = guidance[:, None, None]
        guided = unconditional + scale * (conditional - unconditional)
        return torch.where(scale > 1, guided, conditional)


def _attend(query: Tensor, memory: Tensor, span: AttentionSpan) -> Tensor:
    """Attention of query [R, H, Q, E] to memory [R, 2, H, *, E]; slot after slot where `span` gives lengths."""
    if isinstance(span, Tensor):
        keys, values = memory[..., : span.shape[-1], :].unbind(1)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=span)
    rows = len(query) // len(span)
    attended = [
        functional.scaled_dot_product_attention(queries, *stored[..., :length, :].unbind(1))
        for queries, stored, length in zip(query.split(rows), memory.split(rows), span, strict=True)
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _mask(position: Tensor, used: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of both rows of slots at `position` [S], [2 S, 1, 1, used]."""
    later = torch.arange(used, device=position.device)[None, :] > position[:, None]
    mask = torch.zeros(later.shape, dtype=dtype, device=position.device).masked_fill(later, -torch.inf)
    return mask.repeat_interleave(2, dim=0)[:, None, None, :]


def _fused(*layers: nn.Linear) -> nn.Linear:
    """One linear layer with the outputs of several, which have no biases."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    return fused


def _fold(norm: nn.LayerNorm, layer: nn.Linear) -> None:
    """`layer(norm(x))` stays what it is; the norm's scale becomes 1 and its shift 0."""
    weight = layer.weight.detach().double()
    bias = weight @ norm.bias.detach().double()
    layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
    layer.weight = nn.Parameter((weight * norm.weight.detach().double()).to(layer.weight), requires_grad=False)
    norm.weight, norm.bias = (
        nn.Parameter(fill(part), requires_grad=False)
        for fill, part in ((torch.ones_like, norm.weight), (torch.zeros_like, norm.bias))
    )


def _sinusoids(positions: int, width: int) -> Tensor:
    """MusicGen's position embeddings [positions, width]: cosines, then sines."""
    half = width // 2
    rate = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
    angle = torch.arange(positions).float()[:, None] * rate[None, :]
    table = torch.cat([angle.cos(), angle.sin()], dim=1)
    return functional.pad(table, (0, width - 2 * half))
