"""The kernels of a step, in Triton's language.

A step of a small batch reads every weight once and computes next to nothing: what counts is that the memory is never
idle. So kernels are few, and each is launched before its predecessor has ended (programmatic dependent launch, `PDL`):
it fetches the weights that it needs, which depend on nothing, and then waits for its predecessor (`_wait`). The first
kernel of a step is launched without, so that whatever came before it is over.

What is read before `_wait` must not be written by any kernel of the same step.

Letters: S slots, R rows of hidden states, H heads, E width of a head, D = H E, K codebooks, V vocabulary, T text.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["advance", "cross_attention", "embed", "layer_norm", "sample", "self_attention", "vectors"]

_FAR = tl.constexpr(-1.0e30)
"""Instead of minus infinity, whose differences are no numbers."""
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_INFINITE_BITS = tl.constexpr(0x7F800000)

# SplitMix64, as in `sampling.py`.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_MIX_2 = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def _wait(PDL: tl.constexpr):
    """Let the next kernel be launched, and wait for the end of the last one."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _fetch(ahead, SHARE: tl.constexpr, TOTAL: tl.constexpr):
    """Let the copy engine bring this program's share, in bytes, of `ahead` into the L2 cache."""
    if SHARE > 0:
        programs = tl.num_programs(0)
        program = tl.program_id(0) + programs * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
        begin = program * SHARE
        if begin < TOTAL:
            tl.inline_asm_elementwise(
                """{
                .reg .pred first;
                .reg .b32 thread;
                mov.u32 thread, %tid.x;
                setp.eq.u32 first, thread, 0;
                @first cp.async.bulk.prefetch.L2.global [$1], $2;
                mov.u32 $0, 0;
                }""",
                "=r,l,r",
                [ahead.to(tl.int64) + begin, tl.minimum(TOTAL - begin, SHARE)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def embed(
    history, position, table, places, hidden, running, columns, WIDTH: tl.constexpr, CODEBOOKS: tl.constexpr,
    ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """hidden [S, 2, D] of the tokens history [S, K, columns] at position [S]: embeddings and the position's own.

    Programs: (S, blocks of D). table [K ENTRIES, D], places [*, D].
    """
    slot = tl.program_id(0)
    if slot >= tl.load(running):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.load(position + slot)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for codebook in tl.static_range(CODEBOOKS):
        token = tl.load(history + (slot * CODEBOOKS + codebook) * columns + at)
        total += tl.load(table + (token + codebook * ENTRIES) * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    dtype = hidden.dtype.element_ty
    place = tl.load(places + at * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    value = (total.to(dtype).to(tl.float32) + place).to(dtype)
    tl.store(hidden + slot * 2 * WIDTH + column, value, mask=inside)
    tl.store(hidden + (slot * 2 + 1) * WIDTH + column, value, mask=inside)


@triton.jit
def _gelu(value):
    return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))


@triton.jit
def vectors(
    rows, weight, weight_sums, bias, out, row_stride, out_stride, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    ROWS: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
BLOCK_O: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, LANE: tl.constexpr,
    HELD: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A linear layer of few rows, without tensor cores: out [R, O] of rows [R, I] and weight [O, I].

    NORM normalises the rows first, whose mean and variance are summed while the products are: of a row x with mean m
    and standard deviation s, W (x - m) / s = (W x - m W 1) / s; `weight_sums` is W 1, `bias` [O] is added. GELU
    follows; RESIDUAL adds to what is in `out`.

    Programs: blocks of O. The first HELD chunks of I are in registers before the rows are known. With chunks that one
    warp covers, each warp has outputs of its own, and the rows in the layout of their weights, so that none waits for
    another; SHARED chunks are covered by all warps, which read the rows once and add up: better for many inputs.
    """
    output = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O))[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    kept = output < OUTPUTS
    source = weight + output * INPUTS + column
    held = ()
    for chunk in tl.static_range(HELD):
        held = held + (tl.load(source + chunk * CHUNK, mask=kept & (chunk * CHUNK + column < INPUTS), other=0.0),)
    if NORM:
        sums = tl.load(weight_sums + output, mask=kept, other=0.0)
        shift = tl.load(bias + output, mask=kept, other=0.0).to(tl.float32)
    _wait(PDL)
    products, totals, squares = (), (), ()
    for _ in tl.static_range(ROWS):
        zeros = tl.zeros([BLOCK_O, CHUNK // LANE], dtype=tl.float32)
        products, totals, squares = products + (zeros,), totals + (zeros,), squares + (zeros,)
    for chunk in tl.static_range(CHUNKS):
        inside = kept & (chunk * CHUNK + column < INPUTS)
        if chunk < HELD:
            tile = held[chunk].to(tl.float32)
        else:
            tile = tl.load(source + chunk * CHUNK, mask=inside, other=0.0).to(tl.float32)
        before = products, totals, squares
        products, totals, squares = (), (), ()
        for row in tl.static_range(ROWS):
            where = rows + row * row_stride + chunk * CHUNK + tl.arange(0, CHUNK)
            if SHARED:
                there = chunk * CHUNK + tl.arange(0, CHUNK) < INPUTS
                value = tl.load(where, mask=there, other=0.0)[None, :].to(tl.float32)
            else:
                # With an offset of zeros for each output: the rows come as the weights do.
                value = tl.load(where[None, :] + 0 * output, mask=inside, other=0.0).to(tl.float32)
            products = products + (before[0][row] + _sum_of_lane(tile * value, LANE),)
            if NORM:
                totals = totals + (before[1][row] + _sum_of_lane(value, LANE),)
                squares = squares + (before[2][row] + _sum_of_lane(value * value, LANE),)
    for row in tl.static_range(ROWS):
        result = tl.sum(products[row], axis=1, keep_dims=True)
        if NORM:
            mean = tl.sum(totals[row], axis=1, keep_dims=True) / INPUTS
            variance = tl.sum(squares[row], axis=1, keep_dims=True) / INPUTS - mean * mean
            result = (result - mean * sums) * tl.rsqrt(tl.maximum(variance, 0.0) + EPS) + shift
        if GELU:
            result = _gelu(result.to(weight.dtype.element_ty).to(tl.float32))
        target = out + row * out_stride + output
        if RESIDUAL:
            result += tl.load(target, mask=kept, other=0.0).to(tl.float32)
        tl.store(target, result.to(out.dtype.element_ty), mask=kept)


@triton.jit
def _sum_of_lane(value, LANE: tl.constexpr):
    """Sums [*, C / LANE] of value [*, C]: of what one thread holds, so that no thread asks another one."""
    return tl.sum(tl.reshape(value, [value.shape[0], value.shape[1] // LANE, LANE]), axis=2)


@triton.jit
def layer_norm(
    rows, out, row_stride, out_stride, WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """out [R, D] of rows [R, D], normalised, without scale or shift. Programs: R."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    _wait(PDL)
    value = tl.load(rows + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    normed = centred * tl.rsqrt(variance + EPS)
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _attended(query, keys, values, begin, end, first_keys, first_values, HEAD: tl.constexpr, BLOCK_E: tl.constexpr,
              BLOCK_T: tl.constexpr):  # fmt: skip
    """Attention to positions `begin` to `end`, the first block of which is already there: score, mass and sum [E].

    Every place of a block has a softmax of its own over the blocks, so that threads meet only once, at the end.
    """
    element, place = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_T)
    wide = (element < HEAD)[None, :]
    inside = begin + place < end
    score = tl.sum(first_keys.to(tl.float32) * query[None, :], axis=1)
    highest = tl.where(inside, score, _FAR)
    mass = tl.where(inside, 1.0, 0.0)
    total = mass[:, None] * first_values.to(tl.float32)
    for start in range(begin + BLOCK_T, end, BLOCK_T):
        at = start + place
        inside = at < end
        where = at[:, None] * HEAD + element[None, :]
        key = tl.load(keys + where, mask=inside[:, None] & wide, other=0.0)
        value = tl.load(values + where, mask=inside[:, None] & wide, other=0.0)
        score = tl.where(inside, tl.sum(key.to(tl.float32) * query[None, :], axis=1), _FAR)
        higher = tl.maximum(highest, score)
        factor = tl.exp(highest - higher)
        weight = tl.where(inside, tl.exp(score - higher), 0.0)
        mass = mass * factor + weight
        total = total * factor[:, None] + weight[:, None] * value.to(tl.float32)
        highest = higher
    top = tl.max(highest, axis=0)
    factor = tl.exp(highest - top)
    return top, tl.sum(mass * factor, axis=0), tl.sum(total * factor[:, None], axis=0)


@triton.jit
def self_attention(
    projected, cache, position, running, out, partial, partial_weight, arrived, ahead, room, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, SHARE: tl.constexpr, TOTAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [S, 2, D]: every row's attention to its music so far and to itself, whose keys and values go into the cache.

    projected [S, 2, 3, H, E]; cache [S, 2, 2, H, room, E]. Programs: (2 S, H, SPLITS). Of several splits each leaves
    its part in `partial` [2 S, H, SPLITS, E], and its highest score and mass in `partial_weight` [2 S, H, SPLITS, 2];
    the last one to arrive, by `arrived` [2 S, H], puts them together. Meanwhile TOTAL bytes of `ahead`, SHARE of them
    for each program, are fetched into the cache for a kernel that comes later.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = row // 2
    length = tl.load(position + slot).to(tl.int32)
    runs = slot < tl.load(running)
    element, place = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_T)
    wide = element < HEAD
    keys = cache + (row.to(tl.int64) * 2 * HEADS + head) * room * HEAD
    values = keys + HEADS * room * HEAD
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_T) * BLOCK_T
    begin = split * share
    end = tl.minimum(begin + share, length)
    if not runs:
        end = begin
    at = begin + place
    there = (at < end)[:, None] & wide[None, :]
    where = at[:, None] * HEAD + element[None, :]
    first_keys = tl.load(keys + where, mask=there, other=0.0)
    first_values = tl.load(values + where, mask=there, other=0.0)
    _fetch(ahead, SHARE, TOTAL)
    _wait(PDL)
    if runs:
        own = projected + (row * 3 * HEADS + head) * HEAD + element
        query = tl.load(own, mask=wide, other=0.0).to(tl.float32) * scale
        highest, mass, total = _attended(
            query, keys, values, begin, end, first_keys, first_values, HEAD, BLOCK_E, BLOCK_T
        )
        if split == 0:
            key = tl.load(own + HEADS * HEAD, mask=wide, other=0.0)
            value = tl.load(own + 2 * HEADS * HEAD, mask=wide, other=0.0)
            tl.store(keys + length * HEAD + element, key, mask=wide)
            tl.store(values + length * HEAD + element, value, mask=wide)
            score = tl.sum(query * key.to(tl.float32), axis=0)
            higher = tl.maximum(highest, score)
            factor, weight = tl.exp(highest - higher), tl.exp(score - higher)
            mass = mass * factor + weight
            total = total * factor + weight * value.to(tl.float32)
            highest = higher
        target = out + (row * HEADS + head) * HEAD + element
        if SPLITS > 1:
            part = (row * HEADS + head) * SPLITS
            tl.store(partial + (part + split) * HEAD + element, total, mask=wide)
            tl.store(partial_weight + (part + split) * 2, highest)
            tl.store(partial_weight + (part + split) * 2 + 1, mass)
            tl.debug_barrier()  # all of it is written before it is counted
            if tl.atomic_add(arrived + row * HEADS + head, 1, sem="acq_rel") == SPLITS - 1:
                tl.debug_barrier()
                attended = _put_together(partial, partial_weight, part, element, wide, SPLITS, HEAD, BLOCK_S, BLOCK_E)
                tl.store(target, attended.to(out.dtype.element_ty), mask=wide)
                tl.store(arrived + row * HEADS + head, 0)
        else:
            tl.store(target, (total / mass).to(out.dtype.element_ty), mask=wide)


@triton.jit
def _put_together(partial, partial_weight, part, element, wide, SPLITS: tl.constexpr, HEAD: tl.constexpr,
                  BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """An attention [E] of its parts from `part` on."""
    split = tl.arange(0, BLOCK_S)
    there = split < SPLITS
    highest = tl.load(partial_weight + (part + split) * 2, mask=there, other=_FAR, cache_modifier=".cg")
    mass = tl.load(partial_weight + (part + split) * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
    where = partial + (part + split)[:, None] * HEAD + element[None, :]
    total = tl.load(where, mask=there[:, None] & wide[None, :], other=0.0, cache_modifier=".cg")
    factor = tl.exp(highest - tl.max(highest, axis=0))
    return tl.sum(total * factor[:, None], axis=0) / tl.sum(mass * factor, axis=0)


@triton.jit
def cross_attention(
    query, memory, lengths, running, out, room, scale, HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [S, D]: the attention of query [S, H, E] to a slot's text, memory [S, 2, H, room, E], lengths [S].

    Programs: (S, H).
    """
    slot, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + slot).to(tl.int32)
    runs = slot < tl.load(running)
    element, place = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_T)
    wide = element < HEAD
    keys = memory + (slot.to(tl.int64) * 2 * HEADS + head) * room * HEAD
    values = keys + HEADS * room * HEAD
    there = (place < length)[:, None] & wide[None, :]
    where = place[:, None] * HEAD + element[None, :]
    first_keys = tl.load(keys + where, mask=there, other=0.0)
    first_values = tl.load(values + where, mask=there, other=0.0)
    _wait(PDL)
    if runs:
        own = (slot * HEADS + head) * HEAD + element
        asked = tl.load(query + own, mask=wide, other=0.0).to(tl.float32) * scale
        _, mass, total = _attended(asked, keys, values, 0, length, first_keys, first_values, HEAD, BLOCK_E, BLOCK_T)
        tl.store(out + own, (total / mass).to(out.dtype.element_ty), mask=wide)


@triton.jit
def _shifted(value, BITS: tl.constexpr):
    """A logical shift to the right."""
    return (value.to(tl.uint64, bitcast=True) >> BITS).to(tl.int64, bitcast=True)


@triton.jit
def _mix(value):
    """SplitMix64's finaliser."""
    value = value + _GOLDEN
    value = (value ^ _shifted(value, 30)) * _MIX_1
    value = (value ^ _shifted(value, 27)) * _MIX_2
    return value ^ _shifted(value, 31)


@triton.jit
def sample(
    logits, history, position, dropped, frames, seeds, top_k, top_p, temperature, guidance, running, columns,
    CODEBOOKS: tl.constexpr, CHANNELS: tl.constexpr, VOCABULARY: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Guidance and sampling of logits [S, 2, K, V], as in `sampling.choose`; tokens go into history [S, K, columns].

    Instead of sorting, the lowest value that top-k and top-p keep is looked for bit by bit: of numbers that are not
    negative the bits have the order of the numbers. Programs: (S, K).
    """
    slot, codebook = tl.program_id(0), tl.program_id(1)
    runs = slot < tl.load(running)
    token = tl.arange(0, BLOCK)
    there = token < VOCABULARY
    at = tl.load(position + slot)
    gone = tl.load(dropped + slot)
    stream = _mix(_mix(tl.load(seeds + slot)) + (at + gone))
    index = (codebook * VOCABULARY + token).to(tl.int64)
    bits = _mix(stream + index * _GOLDEN)
    uniform = (_shifted(bits, 41).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
    noise = -tl.log(-tl.log(uniform))
    _wait(PDL)
    if runs:
        conditional = tl.load(logits + (slot * 2 * CODEBOOKS + codebook) * VOCABULARY + token, mask=there, other=0.0)
        unconditional = tl.load(
            logits + ((slot * 2 + 1) * CODEBOOKS + codebook) * VOCABULARY + token, mask=there, other=0.0
        )
        scale = tl.load(guidance + slot)
        value = tl.where(scale > 1, unconditional + scale * (conditional - unconditional), conditional)
        value = tl.where(value == value, value, _LOWEST)
        value = tl.minimum(tl.maximum(value, _LOWEST), _LARGEST)
        value = tl.where(there, value, float("-inf"))
        greedy = tl.argmax(value, axis=0)
        heat = tl.load(temperature + slot)
        below = (value - tl.max(value, axis=0)) / tl.maximum(heat, 1e-6)  # at most 0
        distance = tl.abs(below).to(tl.int32, bitcast=True)
        limit = tl.load(top_k + slot).to(tl.int32)
        limit = tl.where((limit > 0) & (limit < VOCABULARY), limit, VOCABULARY)
        low, high = tl.full([], 0, dtype=tl.int32), tl.full([], _INFINITE_BITS, dtype=tl.int32)
        for _ in range(31):
            middle = low + (high - low) // 2
            enough = tl.sum(((distance <= middle) & there).to(tl.int32), axis=0) >= limit
            high = tl.where(enough, middle, high)
            low = tl.where(enough, low, tl.minimum(middle + 1, high))
        furthest = high
        share = tl.load(top_p + slot)
        if share < 1.0:
            likelihood = tl.where((distance <= furthest) & there, tl.exp(below), 0.0)
            wanted = share * tl.sum(likelihood, axis=0)
            low, high = tl.full([], 0, dtype=tl.int32), furthest
            for _ in range(31):
                middle = low + (high - low + 1) // 2
                fewer = tl.sum(tl.where(distance < middle, likelihood, 0.0), axis=0) < wanted
                low = tl.where(fewer, middle, low)
                high = tl.where(fewer, high, tl.maximum(middle - 1, low))
            furthest = low
        drawn = tl.argmax(tl.where((distance <= furthest) & there, below + noise, float("-inf")), axis=0)
        chosen = tl.where(heat > 0, drawn, greedy).to(tl.int64)
        frame = at - codebook // CHANNELS
        chosen = tl.where((frame >= 0) & (frame < tl.load(frames + slot) - gone), chosen, PAD)
        tl.store(history + (slot * CODEBOOKS + codebook) * columns + at + 1, chosen)


@triton.jit
def advance(position, running, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Move position [S] of the slots that run. One program."""
    slot = tl.arange(0, BLOCK)
    _wait(PDL)
    runs = slot < tl.load(running)
    at = tl.load(position + slot, mask=runs, other=0)
    tl.store(position + slot, at + 1, mask=runs)
