"""A step of a batch on a GPU, from its tokens to the next ones, by the kernels of this folder.

The same computation as `BatchState.step_rows`, which is the reference; rows that do not run are left out.

How a linear layer is computed depends on how many rows there are. Few: without tensor cores, the weights in registers
before the rows are known, the norm in front included. Many: by cuBLAS.

Letters: S slots, R rows of hidden states (two a slot), D width, I inputs, O outputs, H heads, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
from torch import Tensor, nn

from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.fused import kernels
from attune_ensemble.music.musicgen.state import BatchState

__all__ = ["FusedStep", "Tuning"]

_LANE = 8
"""16-bit numbers that a thread reads at once."""
_WARP = 32 * _LANE
_SHARED_WEIGHTS = 1 << 15
"""Weights that one program holds where its warps share the rows: 64 KiB."""
_TEXT_BLOCK = 64
_LINE = 128
"""Bytes of a line of the cache."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the work is divided; found on an H100 (`ensemble/benchmarks/README.md`).

    `few`: the most rows that are computed without tensor cores. `warps`: outputs of a program there. `held`: chunks of
    256 inputs whose weights are in registers before the rows are known. `block`: positions that a program of
    self-attention reads at a time; `few_block` where rows are few, one block a program. `overlap`: programmatic
    dependent launch, and weights fetched into the cache, from compute capability 9.0 on.
    """

    few: int = 4
    warps: int = 4
    held: int = 16
    block: int = 64
    few_block: int = 256
    overlap: bool = True


class FusedStep:
    """Steps a state. All its memory is allocated once, so that steps can be captured in graphs."""

    def __init__(self, state: BatchState, tuning: Tuning | None = None) -> None:
        """Of a state whose decoder has folded norms (`Decoder.fold_norms`) and plain linear layers."""
        self._state = state
        self._tuning = tuning or Tuning(overlap=_has_dependent_launch(state.position.device))
        self._buffers = _Buffers(state, self._tuning)
        self._sums = {id(layer): layer.weight.float().sum(dim=1) for layer in _behind_norms(state.decoder)}

    def step_rows(self, rows: int, used: int) -> None:
        """Step the first `rows` slots, of which `state.running` move on; `used` as in `BatchState.step_rows`."""
        self._embed(rows)
        for index, layer in enumerate(cast(Iterable[Any], self._state.decoder.layers)):
            self._self_attention(index, layer, rows, used)
            self._cross_attention(index, layer, rows)
            self._feed_forward(layer, rows)
        self._sample(rows)

    # The parts of a step

    def _embed(self, rows: int) -> None:
        state, decoder, shape = self._state, self._state.decoder, self._state.decoder.shape
        block = min(1024, triton.next_power_of_2(shape.width))
        # Not launched before its predecessor's end: whatever came before this step is over when it begins.
        kernels.embed[rows, triton.cdiv(shape.width, block)](
            state.history,
            state.position,
            decoder.embedding.weight,
            decoder.positions,
            self._buffers.hidden,
            state.running,
            state.history.shape[2],
            WIDTH=shape.width,
            CODEBOOKS=shape.codebooks,
            ENTRIES=shape.vocabulary + 1,
            BLOCK=block,
        )

    def _self_attention(self, index: int, layer: Any, rows: int, used: int) -> None:
        shape, state, buffers = self._state.decoder.shape, self._state, self._buffers
        hidden = buffers.hidden[:rows].flatten(0, 1)
        self._linear(
            hidden, layer.query_key_value, buffers.projected[:rows].flatten(0, 1), norm=layer.self_attention_norm
        )
        splits, block = self._blocks(rows, used)
        programs = 2 * rows * shape.heads * splits
        # cuBLAS does not fetch in advance; and the loop over the positions is compiled with more of its loads in flight
        # (`ensemble/benchmarks/README.md`). Few rows were no faster.
        ahead = _bytes(layer.expand.weight) if self._tuning.overlap and 2 * rows > self._tuning.few else 0
        cache = state.cache.music[index]
        self._launch(
            kernels.self_attention,
            (2 * rows, shape.heads, splits),
            buffers.projected,
            cache,
            state.position,
            state.running,
            buffers.attended,
            buffers.partial,
            buffers.partial_weight,
            buffers.arrived,
            layer.expand.weight,
            cache.shape[4],
            shape.head_width**-0.5,
            HEADS=shape.heads,
            HEAD=shape.head_width,
            SPLITS=splits,
            BLOCK_S=triton.next_power_of_2(splits),
            BLOCK_E=triton.next_power_of_2(shape.head_width),
            BLOCK_T=block,
            SHARE=triton.cdiv(ahead, programs * _LINE) * _LINE,
            TOTAL=ahead,
            num_warps=8 if block >= 128 else 4,
        )
        self._linear(buffers.attended[:rows].flatten(0, 1), layer.self_attention_output, hidden, residual=True)

    def _cross_attention(self, index: int, layer: Any, rows: int) -> None:
        shape, state, buffers = self._state.decoder.shape, self._state, self._buffers
        hidden, memory = buffers.hidden[:rows, 0], state.cache.text[index]
        self._linear(hidden, layer.cross_query, buffers.query[:rows], norm=layer.cross_attention_norm)
        self._launch(
            kernels.cross_attention,
            (rows, shape.heads),
            buffers.query,
            memory,
            state.cache.text_length,
            state.running,
            buffers.attended_text,
            memory.shape[3],
            shape.head_width**-0.5,
            HEADS=shape.heads,
            HEAD=shape.head_width,
            BLOCK_E=triton.next_power_of_2(shape.head_width),
            BLOCK_T=_TEXT_BLOCK,
            num_warps=4,
        )
        self._linear(buffers.attended_text[:rows], layer.cross_attention_output, hidden, residual=True)

    def _feed_forward(self, layer: Any, rows: int) -> None:
        hidden = self._buffers.hidden[:rows].flatten(0, 1)
        expanded = self._buffers.expanded[:rows].flatten(0, 1)
        self._linear(hidden, layer.expand, expanded, norm=layer.feedforward_norm, gelu=True)
        self._linear(expanded, layer.contract, hidden, residual=True)

    def _sample(self, rows: int) -> None:
        state, shape, buffers = self._state, self._state.decoder.shape, self._buffers
        hidden, logits = (part[:rows].flatten(0, 1) for part in (buffers.hidden, buffers.logits))
        self._linear(hidden, state.decoder.heads, logits, norm=state.decoder.norm)
        self._launch(
            kernels.sample,
            (rows, shape.codebooks),
            buffers.logits,
            state.history,
            state.position,
            state.dropped,
            state.frames,
            state.seed,
            state.top_k,
            state.top_p,
            state.temperature,
            state.guidance,
            state.running,
            state.history.shape[2],
            CODEBOOKS=shape.codebooks,
            CHANNELS=shape.channels,
            VOCABULARY=shape.vocabulary,
            PAD=shape.pad,
            BLOCK=triton.next_power_of_2(shape.vocabulary),
            num_warps=4,
        )
        self._launch(
            kernels.advance, (1,), state.position, state.running, BLOCK=triton.next_power_of_2(rows), num_warps=1
        )

    def _blocks(self, rows: int, used: int) -> tuple[int, int]:
        """Into how many programs a head's self-attention is split, and how many positions each reads at a time.

        Few rows leave most of the GPU idle: there a program has one block, which it reads before it has the query.
        """
        if 2 * rows > self._tuning.few:
            return 1, self._tuning.block
        return triton.cdiv(used, self._tuning.few_block), self._tuning.few_block

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
        """out [R, O] of rows [R, I], which may be strided; `residual` adds to `out`."""
        if len(rows) <= self._tuning.few:
            self._few_rows(rows, layer, out, norm, gelu, residual)
        else:
            self._many_rows(rows, layer, out, norm, gelu, residual)

    def _few_rows(
        self, rows: Tensor, layer: nn.Linear, out: Tensor, norm: nn.LayerNorm | None, gelu: bool, residual: bool
    ) -> None:
        plan = _plan(layer.in_features, shared=norm is None and len(rows) > 1, tuning=self._tuning)
        sums, bias = (layer.weight, layer.weight) if norm is None else (self._sums[id(layer)], layer.bias)
        self._launch(
            kernels.vectors,
            (triton.cdiv(layer.out_features, plan.outputs),),
            rows,
            layer.weight,
            sums,
            bias,
            out,
            rows.stride(0),
            out.stride(0),
            OUTPUTS=layer.out_features,
            INPUTS=layer.in_features,
            ROWS=len(rows),
            NORM=norm is not None,
            GELU=gelu,
            RESIDUAL=residual,
            EPS=0.0 if norm is None else norm.eps,
            BLOCK_O=plan.outputs,
            CHUNKS=plan.chunks,
            CHUNK=plan.chunk,
            LANE=min(_LANE, plan.chunk),
            HELD=min(self._tuning.held, plan.chunks),
            SHARED=plan.shared,
            num_warps=plan.warps,
        )

    def _many_rows(
        self, rows: Tensor, layer: nn.Linear, out: Tensor, norm: nn.LayerNorm | None, gelu: bool, residual: bool
    ) -> None:
        if norm is not None:
            rows = self._normalised(rows, norm)
        target = out if out.dtype == rows.dtype else self._buffers.half_logits.flatten(0, 1)[: len(rows)]
        added = out if residual else layer.bias
        if added is None:
            torch.mm(rows, layer.weight.t(), out=target)
        else:
            torch.addmm(added, rows, layer.weight.t(), out=target)
        if gelu:
            torch.ops.aten.gelu_(target)
        if target is not out:
            out.copy_(target)

    def _normalised(self, rows: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Rows [R, D] with mean 0 and variance 1; the norm's scale and shift are in the layer behind it."""
        normed = self._buffers.normed.flatten(0, 1)[: len(rows)]
        width = rows.shape[1]
        self._launch(
            kernels.layer_norm,
            (len(rows),),
            rows,
            normed,
            rows.stride(0),
            normed.stride(0),
            WIDTH=width,
            EPS=norm.eps,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4,
        )
        return normed

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        if self._tuning.overlap:
            options["launch_pdl"] = True
        kernel[grid](*arguments, PDL=self._tuning.overlap, **options)


class _Buffers:
    """What the kernels of a step hand on to each other."""

    def __init__(self, state: BatchState, tuning: Tuning) -> None:
        shape, weight, slots = state.decoder.shape, state.decoder.embedding.weight, state.slots

        def buffer(*size: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=weight.device)

        self.hidden = buffer(slots, 2, shape.width)
        self.normed = buffer(slots, 2, shape.width)
        self.projected = buffer(slots, 2, 3 * shape.width)
        self.attended = buffer(slots, 2, shape.width)
        self.query = buffer(slots, shape.width)
        self.attended_text = buffer(slots, shape.width)
        self.expanded = buffer(slots, 2, _first(state.decoder).expand.out_features)
        # In float32 for the sake of guidance, which multiplies small differences.
        self.logits = buffer(slots, 2, shape.codebooks * shape.vocabulary, dtype=torch.float32)
        self.half_logits = buffer(slots, 2, shape.codebooks * shape.vocabulary)
        splits = math.ceil((state.positions + 1) / tuning.few_block)
        few = max(1, min(tuning.few, 2 * slots))
        self.partial = buffer(few, shape.heads, splits, shape.head_width, dtype=torch.float32)
        self.partial_weight = buffer(few, shape.heads, splits, 2, dtype=torch.float32)
        self.arrived = buffer(few, shape.heads, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How `kernels.vectors` computes a layer: outputs of a program, and chunks of inputs."""

    outputs: int
    chunk: int
    chunks: int
    warps: int
    shared: bool


def _plan(inputs: int, *, shared: bool, tuning: Tuning) -> _Plan:
    """`shared`: all warps of a program read the rows together, and have the same outputs."""
    padded = triton.next_power_of_2(inputs)
    if not shared:
        chunk = min(_WARP, padded)
        return _Plan(tuning.warps, chunk, triton.cdiv(inputs, chunk), tuning.warps, shared=False)
    warps = 8 if inputs > 8 * _WARP else 4
    chunk = min(warps * _WARP, padded)
    outputs = max(1, min(8, _SHARED_WEIGHTS // padded))
    return _Plan(outputs, chunk, triton.cdiv(inputs, chunk), warps, shared=True)


def _bytes(weight: Tensor) -> int:
    """As many bytes as the copy engine takes: a multiple of 16."""
    return weight.numel() * weight.element_size() // 16 * 16


def _behind_norms(decoder: Decoder) -> Iterator[nn.Linear]:
    """The linear layers that have a norm in front."""
    for layer in cast(Iterable[Any], decoder.layers):
        yield from (layer.query_key_value, layer.cross_query, layer.expand)
    yield decoder.heads


def _first(decoder: Decoder) -> Any:
    return decoder.layers[0]


def _has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may be launched before its predecessor has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
