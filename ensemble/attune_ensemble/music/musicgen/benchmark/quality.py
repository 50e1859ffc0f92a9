"""What faster numerics cost: logits, choices and likelihood of the same music, beside float32.

Float32 writes a piece; every decoder then hears that very piece, step by step. So one differing token does not make all
that follows differ.

Letters: K codebooks, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen.benchmark.rows import FRAME_RATE, PROMPT, Setup
from attune_ensemble.music.musicgen.decoder import Decoder, KeyValueCache
from attune_ensemble.music.musicgen.loading import Numerics, Parts
from attune_ensemble.music.musicgen.state import BatchState, Piece

__all__ = ["Fidelity", "fidelity_rows", "fidelity_table"]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One kind of numerics beside float32, on music that float32 wrote.

    `deviation`: of the logits, relative L2. `agreement`: share of tokens where both find the same one likeliest.
    `likelihood`: mean log-likelihood of the music's tokens, in nats; `kl`: mean divergence from float32's choices.
    """

    numerics: str
    tokens: int
    deviation: float
    agreement: float
    likelihood: float
    kl: float


def fidelity_rows(setup: Setup, others: Sequence[Numerics], seconds: float) -> Iterator[Fidelity]:
    """Float32 first, then the others."""
    frames = round(seconds * FRAME_RATE)
    parts = setup.parts("float32")
    with torch.inference_mode():
        music = _written(parts, frames)
        reference = _heard(parts, music)
    yield _compared("float32", reference, reference, music, parts.decoder)
    for numerics in others:
        del parts
        parts = setup.parts(numerics)
        with torch.inference_mode():
            yield _compared(numerics, _heard(parts, music), reference, music, parts.decoder)


def _written(parts: Parts, frames: int) -> Tensor:
    """Tokens [K, P] of a piece, as they are delayed, the start token included."""
    shape = parts.decoder.shape
    state = BatchState(parts.decoder, 1, frames + shape.codebooks, parts.conditioner.max_tokens)
    text = parts.conditioner.states(PROMPT, shape.width)
    state.begin(0, Piece(frames, 0, SamplingSettings()), text)
    steps = state.pattern.steps(frames)
    for position in range(steps):
        state.step(1, position + 1)
    return state.history[0, :, : steps + 1].clone()


def _heard(parts: Parts, music: Tensor) -> Tensor:
    """Logits [P - 1, K, V] of every next token of music [K, P], with guidance."""
    decoder, device = parts.decoder, music.device
    text = parts.conditioner.states(PROMPT, decoder.shape.width)
    cache = KeyValueCache(decoder.shape, 1, music.shape[1], len(text), decoder.embedding.weight.dtype, device)
    decoder.set_text(cache, 0, text)
    guidance = torch.tensor([SamplingSettings().guidance], device=device)
    logits = [
        decoder.step(cache, music[None, :, index], torch.tensor([index], device=device), index + 1, guidance)[0]
        for index in range(music.shape[1] - 1)
    ]
    return torch.stack(logits).float()


def _compared(name: str, logits: Tensor, reference: Tensor, music: Tensor, decoder: Decoder) -> Fidelity:
    shape = decoder.shape
    real = shape.vocabulary > music[:, 1:].T  # [P - 1, K]: what is no padding of the delay pattern
    ours, theirs = logits[real], reference[real]  # [N, V]
    tokens = music[:, 1:].T[real]
    log_ours, log_theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return Fidelity(
        numerics=name,
        tokens=len(tokens),
        deviation=float((ours - theirs).norm() / theirs.norm()),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        likelihood=float(log_ours.gather(-1, tokens[:, None]).mean()),
        kl=float((log_theirs.exp() * (log_theirs - log_ours)).sum(-1).mean()),
    )


def fidelity_table(rows: Sequence[Fidelity]) -> str:
    """All of them."""
    lines = [
        "| numerics | tokens | deviation of logits | same likeliest token | log-likelihood | KL |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.numerics} | {row.tokens} | {row.deviation:.4f} | {100 * row.agreement:.1f} % "
        f"| {row.likelihood:.3f} | {row.kl:.4f} |"
        for row in rows
    ]
    return "\n".join(lines)
