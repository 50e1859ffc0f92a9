"""Choosing tokens on the device: temperature, top-k, top-p, and noise that depends on nobody else in the batch.

Sampling is the Gumbel-max trick: the largest of log-probability plus noise is a sample. The noise is a hash of (seed,
position, codebook, token), so a request draws the same numbers alone, beside others, and whenever it joined.

Letters: S slots, K codebooks, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["choose", "gumbel", "uniform_noise"]

# Constants of the finalisers of SplitMix64, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
# With a half added they still fit into float32's 24 bits: one bit more would round the largest up to 1, whose Gumbel
# noise is infinite.
_FRACTION_BITS = 23


def choose(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """Return tokens [S, K] of logits [S, K, V].

    `temperature` and `top_p` are [S] float32; `top_k`, `seed` and `position` are [S] int64. Rows of temperature 0 take
    the likeliest token. A token that top-k or top-p leaves out is never chosen, and one whose logit is no number only
    where there is no other.
    """
    logits = logits.float().nan_to_num(nan=torch.finfo(torch.float32).min)  # infinite ones become the largest
    greedy = logits.argmax(dim=-1)  # [S, K]
    # Below zero, so that no division by a small temperature reaches +inf.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.clamp(min=1e-6)[:, None, None]
    lowest = _lowest_kept(scaled, top_k, top_p)
    noise = gumbel(uniform_noise(seed, position, logits.shape[1], logits.shape[2]))
    sampled = (scaled + noise).masked_fill(scaled < lowest, float("-inf")).argmax(dim=-1)
    return torch.where(temperature[:, None] > 0, sampled, greedy)


def _lowest_kept(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The value [S, K, 1] of the last token that top-k and top-p keep; one that is as likely is kept, too."""
    vocabulary = scaled.shape[-1]
    limit = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary)[:, None, None].expand(*scaled.shape[:2], 1)
    if scaled.device.type == "cpu" and bool((top_p == 1).all()):
        # The host may look, and to find some of the likeliest costs a fifth of sorting all. The values are the same.
        likeliest = scaled.topk(int(limit.max()), dim=-1).values
        return likeliest.gather(-1, limit - 1)
    ordered = scaled.sort(dim=-1, descending=True).values
    rank = torch.arange(vocabulary, device=scaled.device)
    probability = ordered.masked_fill(rank >= limit, float("-inf")).softmax(dim=-1)
    # A token stays if those before it hold less than top_p; the first always does. The sum of all may round to 1.
    before = probability.cumsum(dim=-1) - probability
    share = torch.where(top_p < 1, top_p, torch.inf)[:, None, None]
    kept = ((before < share) & (rank < limit)).sum(dim=-1, keepdim=True).clamp(min=1)
    return ordered.gather(-1, kept - 1)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of numbers strictly between 0 and 1."""
    return -torch.log(-torch.log(uniform))


def uniform_noise(seed: Tensor, position: Tensor, codebooks: int, vocabulary: int) -> Tensor:
    """Return numbers strictly between 0 and 1, [S, K, V], a hash of seed [S], position [S], codebook and token."""
    codebook = torch.arange(codebooks, device=seed.device)[None, :, None]
    token = torch.arange(vocabulary, device=seed.device)[None, None, :]
    stream = _mix(_mix(seed) + position)  # [S]
    bits = _mix(stream[:, None, None] + (codebook * vocabulary + token) * _GOLDEN)
    return _between_0_and_1(bits)


def _between_0_and_1(bits: Tensor) -> Tensor:
    """The middle of the one of 2^23 equal intervals that the upper bits of 64-bit integers name."""
    return (_shifted(bits, 64 - _FRACTION_BITS).float() + 0.5) / (1 << _FRACTION_BITS)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser, with logical shifts on signed integers; products wrap."""
    value = value + _GOLDEN
    value = (value ^ _shifted(value, 30)) * _MIX_1
    value = (value ^ _shifted(value, 27)) * _MIX_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A logical shift to the right of signed 64-bit integers."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
