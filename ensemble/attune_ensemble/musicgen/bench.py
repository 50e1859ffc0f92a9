"""`attune bench music`: what the decode loop costs, against transformers' generate and against the memory's speed.

    attune bench music --size small --batch 1,4 --seconds 10

Weights are random unless `--checkpoint` names a folder: speed does not depend on their values. All rows are of one run,
on one machine, one after the other.

The floor of a step is memory traffic: every weight of the decoder once, and the keys and values of every row so far.
The table says how much of the copy bandwidth, measured in the same run, each row reaches.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch

from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.musicgen.decoder import Decoder
from attune_ensemble.musicgen.engine import EngineSettings
from attune_ensemble.musicgen.loading import (
    SIZES,
    Numerics,
    Parts,
    engine_of,
    load_checkpoint,
    parts_of,
    random_checkpoint,
)
from attune_ensemble.musicgen.requests import Generation
from attune_ensemble.musicgen.state import BatchState, Piece
from attune_ensemble.musicgen.stepping import Stepper

__all__ = ["music"]

FRAME_RATE = 50
_PROMPT = "a calm piano piece, slow, in a major key, with soft strings"
_COPY_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Measured:
    """One row: `batch` pieces of `seconds` at a time."""

    name: str
    batch: int
    seconds: float
    wall_s: float
    steps: int
    bytes_per_step: int
    first_audio_s: tuple[float, ...] = ()

    @property
    def speed(self) -> float:
        """Seconds of audio in a second."""
        return self.batch * self.seconds / self.wall_s

    @property
    def step_ms(self) -> float:
        """Time of a step."""
        return 1000 * self.wall_s / self.steps

    @property
    def gb_per_s(self) -> float:
        """Memory traffic that the step cannot do without, by its time."""
        return self.bytes_per_step * self.steps / self.wall_s / 1e9


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and where."""

    size: str
    checkpoint: Path | None
    device: str
    numerics: Numerics
    repeats: int

    def model(self) -> tuple[Any, Any]:
        """Transformers' model and a tokenizer."""
        if self.checkpoint is not None:
            return load_checkpoint(self.checkpoint)
        return random_checkpoint(self.size, device=self.device), _letters

    def parts(self, numerics: Numerics) -> Parts:
        """The engine's parts, from a fresh model."""
        return parts_of(*self.model(), numerics=numerics, device=self.device)


def _letters(prompt: str, **_: Any) -> Any:
    """A stand-in for T5's tokenizer, where there are no weights for one: a token for each letter."""
    from transformers import BatchEncoding

    ids = torch.tensor([[3 + ord(letter) for letter in prompt]])
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy reads and writes, the best of ten."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times = [_timed(lambda: target.copy_(source), device) for _ in range(10)]
    return 2 * _COPY_BYTES / min(times)


def _timed(run: Callable[[], Any], device: str) -> float:
    _synchronise(device)
    started = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


# Rows


def transformers_row(setup: Setup, model: Any, name: str, batch: int, seconds: float, **options: Any) -> Measured:
    """Transformers' generate of tokens; its codec is left out."""
    frames = round(seconds * FRAME_RATE)
    steps = frames + model.decoder.num_codebooks // model.decoder.config.audio_channels - 1
    ids = torch.tensor([[3 + ord(letter) for letter in _PROMPT]] * batch, device=setup.device)
    mask = torch.ones_like(ids)

    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=250,
            guidance_scale=3.0,
            max_new_tokens=steps,
            **options,
        )

    with _without_codec(model):
        _timed(run, setup.device)
        wall_s = statistics.median(_timed(run, setup.device) for _ in range(setup.repeats))
    traffic = _traffic(model.decoder, batch, steps, _PROMPT)
    return Measured(name, batch, seconds, wall_s, steps, traffic)


@contextmanager
def _without_codec(model: Any) -> Iterator[None]:
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **_: SimpleNamespace(audio_values=torch.zeros(codes.shape[1], 1, 1))
    try:
        yield
    finally:
        model.audio_encoder.decode = decode


def stepping_row(setup: Setup, parts: Parts, name: str, batch: int, seconds: float, *, graphs: bool) -> Measured:
    """This project's step, in a bare loop."""
    frames = round(seconds * FRAME_RATE)
    state = BatchState(parts.decoder, batch, frames + 8, 64)
    steps = state.pattern.steps(frames)
    stepper = Stepper(state, graphs=graphs)
    text = parts.conditioner.states(_PROMPT, parts.decoder.shape.width)

    def run() -> None:
        for slot in range(batch):
            state.begin(slot, Piece(frames, slot, SamplingSettings()), text)
        for position in range(steps):
            stepper.step(batch, position + 1)

    with torch.inference_mode():
        _timed(run, setup.device)
        wall_s = statistics.median(_timed(run, setup.device) for _ in range(setup.repeats))
    return Measured(name, batch, seconds, wall_s, steps, _traffic(parts.decoder, batch, steps, _PROMPT))


def engine_row(setup: Setup, parts: Parts, name: str, batch: int, seconds: float) -> Measured:
    """The whole engine: requests at once, audio decoded and streamed."""
    engine = engine_of(parts, EngineSettings(slots=batch, window_s=max(30.0, seconds), ahead_s=seconds + 1))
    first: list[float] = []

    def run() -> None:
        streams = [engine.submit(Generation(_PROMPT, seconds, seed)) for seed in range(batch)]
        for stream in streams:
            for _ in stream:
                pass
            assert stream.first_audio_s is not None
            first.append(stream.first_audio_s - stream.submitted_s)

    try:
        _timed(run, setup.device)
        first.clear()
        wall_s = statistics.median(_timed(run, setup.device) for _ in range(setup.repeats))
    finally:
        engine.close()
    steps = round(seconds * FRAME_RATE) + parts.decoder.shape.codebooks // parts.decoder.shape.channels - 1
    traffic = _traffic(parts.decoder, batch, steps, _PROMPT)
    return Measured(name, batch, seconds, wall_s, steps, traffic, tuple(first))


def _traffic(decoder: Any, batch: int, steps: int, prompt: str) -> int:
    """Bytes that an average step has to read: weights, and keys and values of half of the steps, both rows."""
    weights = sum(_weight_bytes(module) for module in decoder.modules())
    if isinstance(decoder, Decoder):
        layers, width, element = decoder.shape.layers, decoder.shape.width, decoder.embedding.weight.element_size()
    else:
        config = decoder.config
        layers, width, element = config.num_hidden_layers, config.hidden_size, decoder.dtype.itemsize
    rows, music = 2, steps // 2
    return weights + 2 * layers * width * element * batch * (rows * music + len(prompt))


def _weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a linear layer's weight, plain or quantised; what a step does not read as a whole counts nothing."""
    if isinstance(module, torch.nn.Linear):
        return module.weight.numel() * module.weight.element_size()
    if type(module).__module__.startswith("torch.ao.nn.quantized"):
        return int(module.weight().numel())  # type: ignore[operator]
    return 0


# Report


def table(rows: Sequence[Measured], bandwidth: float) -> str:
    """Every row against transformers' eager generate of the same batch and length."""
    columns = ("what", "batch", "seconds", "audio s / s", "against eager", "ms / step", "GB/s", "of copy")
    lines = [f"| {' | '.join(columns)} | first audio p50 / p95 ms |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    eager = {(row.batch, row.seconds): row.speed for row in rows if row.name == rows[0].name}
    for row in rows:
        baseline = eager.get((row.batch, row.seconds))
        against = f"{row.speed / baseline:.2f}x" if baseline else ""
        cells = (
            row.name,
            str(row.batch),
            f"{row.seconds:g}",
            f"{row.speed:.2f}",
            against,
            f"{row.step_ms:.2f}",
            f"{row.gb_per_s:.1f}",
            f"{1e11 * row.gb_per_s / bandwidth:.0f} %",
            _latency(row.first_audio_s),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _latency(times_s: Sequence[float]) -> str:
    if not times_s:
        return ""
    ordered = sorted(times_s)
    return f"{1000 * statistics.median(ordered):.0f} / {1000 * ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers, such as 1,4") from error


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Real weights.")
@click.option("--batch", "batches", default="1,4", show_default=True, help="Pieces at a time.")
@click.option("--seconds", "lengths", default="10", show_default=True, help="Length of a piece.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default=None, help="[default: cuda where there is one]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Counted runs of each row.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line alone.")
def music(
    size: str,
    checkpoint: Path | None,
    batches: str,
    lengths: str,
    device: str | None,
    threads: int | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Time MusicGen: transformers' generate, this engine step by step, and the memory's speed."""
    if threads:
        torch.set_num_threads(threads)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    numerics: Numerics = "bfloat16" if chosen == "cuda" else "float32"
    setup = Setup(size, checkpoint, chosen, numerics, repeats)
    bandwidth = copy_bandwidth(chosen)
    rows: list[Measured] = []
    for seconds in _numbers(lengths):
        for batch in map(int, _numbers(batches)):
            for row in _rows(setup, batch, seconds):
                rows.append(row)
                click.echo(f"{row.name}, batch {row.batch}: {row.speed:.2f} s/s", err=True)
    if not as_json:
        click.echo(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s\n\n{table(rows, bandwidth)}\n")
    click.echo(json.dumps({"bandwidth": bandwidth, "rows": [asdict(row) | {"speed": row.speed} for row in rows]}))


def _rows(setup: Setup, batch: int, seconds: float) -> Iterator[Measured]:
    model, _ = setup.model()
    model = model.to(setup.device, torch.bfloat16 if setup.device == "cuda" else torch.float32)
    yield transformers_row(setup, model, "transformers generate, eager", batch, seconds)
    yield transformers_row(
        setup, model, "transformers generate, static cache", batch, seconds, cache_implementation="static"
    )
    del model
    parts = setup.parts(setup.numerics)
    yield stepping_row(setup, parts, f"static cache, fused, {setup.numerics}", batch, seconds, graphs=False)
    if setup.device == "cuda":
        yield stepping_row(setup, parts, "the same, CUDA graphs", batch, seconds, graphs=True)
    yield engine_row(setup, parts, f"the engine, {setup.numerics}, with the codec", batch, seconds)
    if setup.device == "cpu":
        parts = setup.parts("int8")
        yield stepping_row(setup, parts, "static cache, fused, int8", batch, seconds, graphs=False)
        yield engine_row(setup, parts, "the engine, int8, with the codec", batch, seconds)
