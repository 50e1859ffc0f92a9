"""What is measured: transformers' generate, this project's step, the whole engine, and the parts beside the decoder."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.mkldnn import MkldnnLinear

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen.benchmark.machine import memory_in_use, reset_memory, timed
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.fused import is_fusible
from attune_ensemble.music.musicgen.linear import Int8Linear
from attune_ensemble.music.musicgen.loading import (
    Numerics,
    Parts,
    engine_of,
    load_checkpoint,
    parts_of,
    random_checkpoint,
)
from attune_ensemble.music.musicgen.pattern import DelayPattern
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.state import BatchState, Piece
from attune_ensemble.music.musicgen.stepping import Stepper
from attune_ensemble.music.musicgen.threads import on_own_thread

__all__ = ["EAGER", "PROMPT", "Measured", "Setup", "baseline_groups", "own_groups", "part_groups"]

EAGER = "transformers generate, eager"
"""The row that all others are held against."""

FRAME_RATE = 50
PROMPT = "a calm piano piece, slow, in a major key, with soft strings"
_MAX_TEXT = 64
_WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One row: `batch` pieces at a time, `audio_s` seconds of music in all, in `wall_s`.

    `steps` is 0 where something else than a decoder's steps was timed. `seconds` is the length of a piece; of a slow
    row only its first `timed_s` were made, unless that is 0.
    """

    name: str
    batch: int
    seconds: float
    audio_s: float
    wall_s: float
    steps: int = 0
    bytes_per_step: int = 0
    memory: int = 0
    first_audio_s: tuple[float, ...] = ()
    timed_s: float = 0.0

    @property
    def speed(self) -> float:
        """Seconds of audio in a second."""
        return self.audio_s / self.wall_s

    @property
    def step_ms(self) -> float:
        """Time of a step."""
        return 1000 * self.wall_s / self.steps

    @property
    def gb_per_s(self) -> float:
        """Memory traffic that the steps cannot do without, by their time."""
        return self.bytes_per_step * self.steps / self.wall_s / 1e9


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and where; each thing on a thread of its own, so that none slows down the next.

    A row is run `repeats` times, but not again once that has taken `budget_s`. Rows that are slow for want of graphs
    make the first `baseline_s` seconds of a piece alone.
    """

    size: str
    checkpoint: Path | None
    device: str
    repeats: int
    budget_s: float = math.inf
    baseline_s: float = math.inf

    @property
    def plain(self) -> Numerics:
        """The numerics in which everything is compared."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def model(self) -> tuple[Any, Any]:
        """Transformers' model and a tokenizer; the same weights every time."""
        return on_own_thread(self._model)

    def parts(self, numerics: Numerics) -> Parts:
        """The engine's parts, from a fresh model."""
        return on_own_thread(lambda: parts_of(*self._model(), numerics=numerics, device=self.device))

    def median_s(self, run: Callable[[], Any], warm_up: Callable[[], Any] | None = None) -> float:
        """The median time of `run`, after `warm_up` (default: `run`), which does not count."""

        def measure() -> float:
            timed(warm_up or run, self.device)
            times_s = [timed(run, self.device)]
            while len(times_s) < self.repeats and sum(times_s) < self.budget_s:
                times_s.append(timed(run, self.device))
            return statistics.median(times_s)

        return on_own_thread(measure)

    def _model(self) -> tuple[Any, Any]:
        if self.checkpoint is not None:
            return load_checkpoint(self.checkpoint)
        torch.manual_seed(0)
        return random_checkpoint(self.size, device=self.device), _letters


def _letters(prompt: str, **_: Any) -> Any:
    """A stand-in for T5's tokenizer, where there are no weights for one: a token for each letter."""
    from transformers import BatchEncoding

    ids = torch.tensor([[3 + ord(letter) for letter in prompt]])
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


Group = tuple[str, Iterator[Measured]]
"""Rows that share a model, by the name of what they share; nothing is done until they are asked for."""


def own_groups(setup: Setup, batch: int, seconds: float) -> Iterator[Group]:
    """This project's rows, the whole engine first: what has to be there if the time runs out."""
    yield setup.plain, _own_rows(setup, setup.plain, batch, seconds)
    if setup.device == "cpu":
        yield "int8", _own_rows(setup, "int8", batch, seconds)


def baseline_groups(setup: Setup, batch: int, seconds: float, *, compiled: bool) -> Iterator[Group]:
    """What they are held against, all of it slow; transformers' eager generate is the baseline."""
    yield "transformers", _transformers_rows(setup, batch, seconds)
    if setup.device != "cpu":
        yield f"{setup.plain} without graphs", _uncaptured_row(setup, batch, seconds)
    if compiled and setup.device != "cpu":  # without graphs' buckets of context every step would be compiled anew
        yield "this project, torch.compile", _compiled_row(setup, batch, seconds)
    if compiled:
        yield "transformers, torch.compile", _transformers_compiled_row(setup, batch, seconds)


# Transformers


_STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
"""On a GPU, generate would compile by itself where the cache is static."""


def _transformers_rows(setup: Setup, batch: int, seconds: float) -> Iterator[Measured]:
    model, prompts = _transformers_model(setup, batch)
    yield _transformers_row(setup, model, prompts, EAGER, seconds)
    yield _transformers_row(setup, model, prompts, "transformers generate, static cache", seconds, **_STATIC)


def _transformers_compiled_row(setup: Setup, batch: int, seconds: float) -> Iterator[Measured]:
    model, prompts = _transformers_model(setup, batch)
    model.decoder.forward = torch.compile(model.decoder.forward, mode="reduce-overhead", fullgraph=False)
    name = "transformers generate, static cache, torch.compile"
    yield _transformers_row(setup, model, prompts, name, seconds, **_STATIC)


def _transformers_model(setup: Setup, batch: int) -> tuple[Any, Tensor]:
    """The model, and the prompt's tokens [B, T]."""
    reset_memory(setup.device)
    model, tokenizer = setup.model()
    model = on_own_thread(lambda: model.to(setup.device, torch.float32 if setup.device == "cpu" else torch.bfloat16))
    return model, tokenizer(PROMPT, return_tensors="pt")["input_ids"].to(setup.device).repeat(batch, 1)


def _transformers_row(setup: Setup, model: Any, prompts: Tensor, name: str, seconds: float, **options: Any) -> Measured:
    """Transformers' generate of tokens for prompts [B, T]; its codec is left out."""
    shape, timed_s = model.decoder.config, min(seconds, setup.baseline_s)
    steps = DelayPattern(shape.num_codebooks, shape.audio_channels, shape.vocab_size).steps(round(timed_s * FRAME_RATE))
    sampling = {"do_sample": True, "top_k": 250, "guidance_scale": 3.0}

    def run(steps: int = steps) -> None:
        mask = torch.ones_like(prompts)
        model.generate(input_ids=prompts, attention_mask=mask, max_new_tokens=steps, **sampling, **options)

    with _without_codec(model):
        # Without graphs a few steps have met everything there is; on a GPU a whole piece takes ten seconds.
        is_compiled = "forward" in vars(model.decoder)
        wall_s = setup.median_s(run, None if is_compiled else partial(run, min(steps, _WARM_UP_STEPS)))
    return _row(setup, name, len(prompts), seconds, wall_s, steps, model.decoder, timed_s=timed_s)


@contextmanager
def _without_codec(model: Any) -> Iterator[None]:
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **_: SimpleNamespace(audio_values=torch.zeros(codes.shape[1], 1, 1))
    try:
        yield
    finally:
        model.audio_encoder.decode = decode


# This project


def _own_rows(setup: Setup, numerics: Numerics, batch: int, seconds: float) -> Iterator[Measured]:
    reset_memory(setup.device)
    parts = setup.parts(numerics)
    yield from _engine_rows(setup, parts, numerics, batch, seconds)
    if is_fusible(parts.decoder):
        name = f"CUDA graphs of its own kernels, {numerics}"
        yield _stepping_row(setup, parts, name, batch, seconds, graphs=True, fused=True)
    if setup.device == "cpu":
        yield _stepping_row(setup, parts, f"static cache, fused, {numerics}", batch, seconds, graphs=False)
    else:
        yield _stepping_row(setup, parts, f"CUDA graphs, {numerics}", batch, seconds, graphs=True)


def _uncaptured_row(setup: Setup, batch: int, seconds: float) -> Iterator[Measured]:
    reset_memory(setup.device)
    parts, name = setup.parts(setup.plain), f"static cache, fused, {setup.plain}"
    yield _stepping_row(setup, parts, name, batch, seconds, graphs=False, limit_s=setup.baseline_s)


def _compiled_row(setup: Setup, batch: int, seconds: float) -> Iterator[Measured]:
    reset_memory(setup.device)
    parts, graphs = setup.parts(setup.plain), setup.device != "cpu"
    parts.decoder.compile_layers()
    name = f"static cache, torch.compile{', CUDA graphs' if graphs else ''}"
    yield _stepping_row(setup, parts, name, batch, seconds, graphs=graphs)


def _stepping_row(
    setup: Setup,
    parts: Parts,
    name: str,
    batch: int,
    seconds: float,
    *,
    graphs: bool,
    fused: bool = False,
    limit_s: float = math.inf,
) -> Measured:
    """The step in a bare loop, without the codec; of a piece only its first `limit_s`."""
    timed_s = min(seconds, limit_s)
    frames, shape = round(timed_s * FRAME_RATE), parts.decoder.shape
    state = on_own_thread(lambda: BatchState(parts.decoder, batch, frames + shape.codebooks, _MAX_TEXT))
    steps = state.pattern.steps(frames)
    stepper = on_own_thread(lambda: Stepper(state, graphs=None if graphs else False, fused=fused))
    on_own_thread(lambda: stepper.prepare([batch]))

    @torch.inference_mode()
    def run(steps: int = steps) -> None:
        text = parts.conditioner.states(PROMPT, shape.width)
        for slot in range(batch):
            state.begin(slot, Piece(frames, slot, SamplingSettings()), text)
        for position in range(steps):
            stepper.step(batch, position + 1)

    wall_s = setup.median_s(run, partial(run, min(steps, _WARM_UP_STEPS)))
    return _row(setup, name, batch, seconds, wall_s, steps, parts.decoder, timed_s=timed_s)


def _engine_rows(setup: Setup, parts: Parts, numerics: str, batch: int, seconds: float) -> Iterator[Measured]:
    """The whole engine, its codec included: requests that come at once, and twice as many that come and go."""
    settings = EngineSettings(slots=batch, window_s=max(30.0, seconds), ahead_s=2 * seconds + 1)
    engine = on_own_thread(lambda: engine_of(parts, settings))
    shape = parts.decoder.shape
    steps = DelayPattern(shape.codebooks, shape.channels, shape.pad).steps(round(seconds * FRAME_RATE))
    try:
        wall_s, first_s = _play(setup, engine, [seconds] * batch)
        name = f"the engine, {numerics}, with the codec"
        yield _row(setup, name, batch, seconds, wall_s, steps, parts.decoder, first_audio_s=first_s)
        lengths = [seconds, seconds / 2] * batch
        wall_s, first_s = _play(setup, engine, lengths)
        name = f"the engine, {numerics}, {2 * batch} requests of two lengths"
        memory = memory_in_use(setup.device)
        yield Measured(name, batch, seconds, sum(lengths), wall_s, memory=memory, first_audio_s=first_s)
    finally:
        engine.close()


def _play(setup: Setup, engine: Any, lengths: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    first: list[float] = []

    def run() -> None:
        streams = [engine.submit(Generation(PROMPT, length, seed)) for seed, length in enumerate(lengths)]
        for stream in streams:
            for _ in stream:
                pass
            assert stream.first_audio_s is not None
            first.append(stream.first_audio_s - stream.submitted_s)

    wall_s = setup.median_s(run)
    return wall_s, tuple(first[len(lengths) :])  # those of the run that does not count are left out


def _row(
    setup: Setup,
    name: str,
    batch: int,
    seconds: float,
    wall_s: float,
    steps: int,
    decoder: Any,
    *,
    timed_s: float | None = None,
    first_audio_s: tuple[float, ...] = (),
) -> Measured:
    traffic, memory = _traffic(decoder, batch, steps), memory_in_use(setup.device)
    made_s = seconds if timed_s is None else timed_s
    return Measured(name, batch, seconds, batch * made_s, wall_s, steps, traffic, memory, first_audio_s, made_s)


def _traffic(decoder: Any, batch: int, steps: int) -> int:
    """Bytes that an average step has to read: weights, and keys and values of half of the steps, both rows."""
    weights = sum(_weight_bytes(module) for module in decoder.modules())
    if isinstance(decoder, Decoder):
        layers, width, element = decoder.shape.layers, decoder.shape.width, decoder.embedding.weight.element_size()
    else:
        config = decoder.config
        layers, width, element = config.num_hidden_layers, config.hidden_size, decoder.dtype.itemsize
    rows, music = 2, steps // 2
    return weights + 2 * layers * width * element * batch * (rows * music + len(PROMPT))


def _weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a linear layer's weight, of whatever kind; what a step does not read as a whole counts nothing."""
    if isinstance(module, torch.nn.Linear | MkldnnLinear):
        return module.weight.numel() * module.weight.element_size()
    if isinstance(module, Int8Linear):
        return module.in_features * module.out_features
    return 0


# The parts beside the decoder


def part_groups(setup: Setup, seconds: float) -> Iterator[Group]:
    """What stands beside the decoder, and what happens before the first request."""
    yield "text encoder and codec", _text_and_codec_rows(setup, seconds)
    if setup.device != "cpu":
        yield "CUDA graphs", _capture_row(setup)


def _capture_row(setup: Setup) -> Iterator[Measured]:
    """Capturing every graph of 16 slots and half a minute, once: its time, and the GPU's memory that it takes."""
    reset_memory(setup.device)
    parts = setup.parts(setup.plain)
    slots, positions = 16, 30 * FRAME_RATE

    def capture() -> tuple[float, int, int]:
        state = BatchState(parts.decoder, slots, positions, _MAX_TEXT)
        stepper = Stepper(state)
        reset_memory(setup.device)
        reserved = torch.cuda.memory_reserved()  # graphs have their memory from PyTorch's allocator
        wall_s = timed(stepper.prepare, setup.device)
        return wall_s, stepper.prepare(), torch.cuda.memory_reserved() - reserved

    wall_s, graphs, memory = on_own_thread(capture)
    name = f"capturing {graphs} CUDA graphs of {slots} slots, which take {memory / 2**20:.0f} MiB"
    yield Measured(name, slots, 0.0, 0.0, wall_s, memory=memory)


def _text_and_codec_rows(setup: Setup, seconds: float) -> Iterator[Measured]:
    """The text encoder on one prompt, and the codec on one piece: as a whole, and in chunks of two seconds."""
    parts = setup.parts(setup.plain)
    wall_s = setup.median_s(lambda: parts.conditioner.encode(PROMPT))
    yield Measured("T5, one prompt", 1, 0.0, 0.0, wall_s)
    frames = round(seconds * FRAME_RATE)
    codes = torch.randint(0, parts.decoder.shape.vocabulary, (parts.decoder.shape.codebooks, frames))
    codes = codes.to(setup.device)
    for name, size in (("EnCodec, the whole piece", frames), ("EnCodec, chunks of 2 s", 2 * FRAME_RATE)):
        wall_s = setup.median_s(partial(_decode, parts, codes, size))
        yield Measured(name, 1, seconds, seconds, wall_s)


def _decode(parts: Parts, codes: Tensor, size: int) -> None:
    stream = parts.codec.stream()
    for first in range(0, codes.shape[1], size):
        stream.push(codes[:, first : first + size], final=first + size >= codes.shape[1])
