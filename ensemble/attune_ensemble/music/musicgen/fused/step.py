"""A step of a batch on a GPU, from its tokens to the next ones, by the kernels of this folder.

The same computation as `BatchState.step_rows`, which is the reference. Rows too many are left out instead of computed.

How a linear layer is computed depends on how many rows there are. Few: on the ordinary cores, the weights in registers
before the rows are known. Many: by cuBLAS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional

from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.fused import kernels
from attune_ensemble.music.musicgen.state import BatchState

__all__ = ["FusedStep", "Tuning"]

_WARP = 256
"""Numbers that a warp reads at once: 16 bytes a thread."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """From how many rows on a linear layer is computed otherwise, and how.

    `vectors`: the most rows without tensor cores. `overlap`: programmatic dependent launch.
    """

    vectors: int = 4
    warps: int = 4
    held: int = 16
    overlap: bool = True
    block_t: int = 64
    block_few: int = 256


class FusedStep:
    """Moves the slots of a state on; everything it needs beside the state is allocated once."""

    def __init__(self, state: BatchState, tuning: Tuning | None = None) -> None:
        """Of a state on a GPU, whose decoder holds plain linear layers."""
        self._state = state
        self._tuning = tuning or Tuning(overlap=_has_dependent_launch(state.position.device))
        shape, weight = state.decoder.shape, state.decoder.embedding.weight
        slots, width = state.slots, shape.width
        self._sums = _sums_of_weights(state.decoder)
        self._feedforward = state.decoder.layers[0].expand.out_features

        def buffer(*size: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=weight.device)

        self._hidden = buffer(slots, 2, width)
        self._projected = buffer(slots, 2, 3 * width)
        self._attended = buffer(slots, 2, width)
        self._query, self._heard = buffer(slots, width), buffer(slots, width)
        self._normed = buffer(slots, 2, width)
        self._expanded = buffer(slots, 2, self._feedforward)
        self._logits = buffer(slots, 2, shape.codebooks * shape.vocabulary, dtype=torch.float32)
        self._rough_logits = buffer(slots, 2, shape.codebooks * shape.vocabulary)
        rows = min(slots, 4) * 2
        self._partial = buffer(rows, shape.heads, 64, shape.head_width, dtype=torch.float32)
        self._arrived = buffer(rows, shape.heads, dtype=torch.int32)
        self._partial_weight = buffer(rows, shape.heads, 64, 2, dtype=torch.float32)

    def step_rows(self, rows: int, used: int) -> None:
        """As `BatchState.step_rows`."""
        self._embed(rows)
        for index, layer in enumerate(self._state.decoder.layers):
            self._self_attention(index, layer, rows, used)
            self._cross_attention(index, layer, rows)
            self._feed_forward(layer, rows)
        self._choose(rows)

    # Parts of a step

    def _embed(self, rows: int) -> None:
        state, decoder, shape = self._state, self._state.decoder, self._state.decoder.shape
        block = min(1024, triton.next_power_of_2(shape.width))
        kernels.embed[rows, triton.cdiv(shape.width, block)](
            state.history, state.position, decoder.embedding.weight, decoder.positions, self._hidden, state.running,
            state.history.shape[2], WIDTH=shape.width, CODEBOOKS=shape.codebooks, ENTRIES=shape.vocabulary + 1,
            BLOCK=block,
        )  # fmt: skip

    def _self_attention(self, index: int, layer: Any, rows: int, used: int) -> None:
        shape, state, tuning = self._state.decoder.shape, self._state, self._tuning
        hidden = self._hidden[:rows].flatten(0, 1)
        projected = self._projected[:rows].flatten(0, 1)
        self._linear(hidden, layer.query_key_value, projected, norm=layer.attention_norm)
        splits, block_t = self._blocks(rows, used)
        music = state.cache.music[index]
        self._launch(
            kernels.self_attention, (2 * rows, shape.heads, splits),
            self._projected, music, state.position, state.running, self._attended, self._partial, self._partial_weight,
            self._arrived, music.shape[4], shape.head_width**-0.5, HEADS=shape.heads, HEAD=shape.head_width, SPLITS=splits,
            BLOCK_S=triton.next_power_of_2(splits),
            BLOCK_E=triton.next_power_of_2(shape.head_width), BLOCK_T=block_t, num_warps=max(1, min(8, block_t // 16)),
        )  # fmt: skip
        attended = self._attended[:rows].flatten(0, 1)
        self._linear(attended, layer.attention_output, hidden, residual=True)

    def _cross_attention(self, index: int, layer: Any, rows: int) -> None:
        shape, state, tuning = self._state.decoder.shape, self._state, self._tuning
        hidden, text = self._hidden[:rows, 0], state.cache.text[index]
        self._linear(hidden, layer.text_query, self._query[:rows], norm=layer.text_norm)
        self._launch(
            kernels.cross_attention, (rows, shape.heads),
            self._query, text, state.cache.text_length, state.running, self._heard, text.shape[3],
            shape.head_width**-0.5, HEADS=shape.heads, HEAD=shape.head_width,
            BLOCK_E=triton.next_power_of_2(shape.head_width), BLOCK_T=min(64, tuning.block_t), num_warps=4,
        )  # fmt: skip
        self._linear(self._heard[:rows], layer.text_output, hidden, residual=True)

    def _feed_forward(self, layer: Any, rows: int) -> None:
        hidden, expanded = self._hidden[:rows].flatten(0, 1), self._expanded[:rows].flatten(0, 1)
        self._linear(hidden, layer.expand, expanded, norm=layer.feedforward_norm, gelu=True)
        self._linear(expanded, layer.contract, hidden, residual=True)

    def _choose(self, rows: int) -> None:
        state, shape = self._state, self._state.decoder.shape
        hidden = self._hidden[:rows].flatten(0, 1)
        logits = self._logits[:rows].flatten(0, 1)
        self._linear(hidden, state.decoder.heads, logits, norm=state.decoder.norm)
        self._launch(
            kernels.sample, (rows, shape.codebooks),
            self._logits, state.history, state.position, state.dropped, state.frames, state.seed, state.top_k,
            state.top_p, state.temperature, state.guidance, state.running, state.history.shape[2],
            CODEBOOKS=shape.codebooks, CHANNELS=shape.channels, VOCABULARY=shape.vocabulary, PAD=shape.pad,
            BLOCK=triton.next_power_of_2(shape.vocabulary), num_warps=4,
        )  # fmt: skip
        self._launch(
            kernels.advance, (1,), state.position, state.running, BLOCK=triton.next_power_of_2(rows), num_warps=1
        )

    def _blocks(self, rows: int, used: int) -> tuple[int, int]:
        """Into how many parts an attention is split, and how many positions a program reads at a time.

        Few rows leave most of the GPU idle, so there every program reads one block, before it knows what is asked.
        """
        if 2 * rows > self._tuning.vectors:
            return 1, self._tuning.block_t
        return triton.cdiv(used, self._tuning.block_few), self._tuning.block_few

    # Linear layers

    def _linear(
        self,
        rows: Tensor,
        layer: nn.Linear,
        out: Tensor,
        *,
        norm: nn.LayerNorm | None = None,
        gelu: bool = False,
        residual: bool = False,
    ) -> None:
        """out [R, O] of rows [R, I], which may be rows of something wider; `residual` adds to `out`."""
        count = len(rows)
        if count <= self._tuning.vectors:
            self._vectors(rows, layer, out, norm, gelu, residual)
        else:
            self._library(rows, layer, out, norm, gelu, residual)

    def _vectors(
        self, rows: Tensor, layer: nn.Linear, out: Tensor, norm: nn.LayerNorm | None, gelu: bool, residual: bool
    ) -> None:
        plan = _plan(layer.in_features, shared=norm is None and len(rows) > 1, tuning=self._tuning)
        sums, bias = (layer.weight, layer.weight) if norm is None else (self._sums[id(layer)], layer.bias)
        self._launch(
            kernels.vectors, (triton.cdiv(layer.out_features, plan.outputs),),
            rows, layer.weight, sums, bias, out, rows.stride(0), out.stride(0), OUTPUTS=layer.out_features,
            INPUTS=layer.in_features, ROWS=len(rows), NORM=norm is not None, GELU=gelu, RESIDUAL=residual,
            EPS=norm.eps if norm is not None else 0.0, BLOCK_O=plan.outputs, CHUNKS=plan.chunks, CHUNK=plan.chunk,
            LANE=min(8, plan.chunk), HELD=min(plan.held, plan.chunks), SHARED=plan.shared, num_warps=plan.warps,
        )  # fmt: skip

    def _library(
        self, rows: Tensor, layer: nn.Linear, out: Tensor, norm: nn.LayerNorm | None, gelu: bool, residual: bool
    ) -> None:
        if norm is not None:
            normed = self._normed.flatten(0, 1)[: len(rows)]
            self._launch(
                kernels.layer_norm, (len(rows),), rows, normed, rows.stride(0), normed.stride(0),
                WIDTH=layer.in_features, EPS=norm.eps,
                BLOCK=triton.next_power_of_2(layer.in_features), num_warps=4,
            )  # fmt: skip
            rows = normed
        added = out if residual else layer.bias
        target = out if out.dtype == rows.dtype else self._rough_logits.flatten(0, 1)[: len(rows)]
        if added is None:
            torch.mm(rows, layer.weight.t(), out=target)
        else:
            torch.addmm(added, rows, layer.weight.t(), out=target)
        if target is not out:
            out.copy_(target)
        if gelu:
            torch.ops.aten.gelu_(out)

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        overlap = self._tuning.overlap
        extra = {"launch_pdl": True} if overlap else {}
        kernel[grid](*arguments, PDL=overlap, **options, **extra)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How `kernels.vectors` computes a layer: its blocks of outputs, and its chunks of inputs."""

    outputs: int
    chunk: int
    chunks: int
    held: int
    warps: int
    shared: bool


def _plan(inputs: int, *, shared: bool, tuning: Tuning) -> _Plan:
    padded = triton.next_power_of_2(inputs)
    warps = tuning.warps
    if not shared:
        chunk = min(_WARP, padded)
        return _Plan(warps, chunk, triton.cdiv(inputs, chunk), tuning.held, warps, shared=False)
    warps = 8 if inputs > 2048 else 4
    chunk = min(warps * _WARP, padded)
    outputs = max(1, min(8, (1 << 15) // padded))
    return _Plan(outputs, chunk, triton.cdiv(inputs, chunk), tuning.held, warps, shared=True)


def _sums_of_weights(decoder: Decoder) -> dict[int, Tensor]:
    """For every linear layer behind a norm, by its id, the sum of each output's weights, [O] float32."""
    behind = [decoder.heads]
    for layer in decoder.layers:
        behind += [layer.query_key_value, layer.text_query, layer.expand]
    return {id(layer): layer.weight.float().sum(dim=1) for layer in behind}


def _has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may be launched before its predecessor has ended: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


Launch = Callable[..., None]
_ = functional
