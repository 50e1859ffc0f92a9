"""The least that a recognition costs: operations, and bytes of weights and states, of each part of the cut regressors.

    python -m attune_export.floor

Operations are those of matrix products, convolutions and attention, two for each multiplication with its addition, as
PyTorch counts them; the rest is below one in a hundred. They depend on shapes alone, so nothing is computed, and
the weights may be random. Bytes are those that an utterance alone has to read at float32: every weight once (of an
embedding, one row a token), and the states at the cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_training.config import RegressorConfig, embedded_config, paper_config
from attune_training.models.cut import Cut, Head, SharedEncoder, audio_steps, text_steps
from attune_training.models.regressor import Regressor, build_regressor

__all__ = ["DURATIONS_S", "TOWERS", "Cost", "Floor", "cut_of_towers", "floor_of", "floor_table", "measure"]
__all__ += ["least_operations", "unweighted"]

DURATIONS_S = (2.0, 4.5, 8.0)
_TOKENS_PER_S = 4.0  # of running speech, with the two that open and close a text
_FLOAT32_BYTES = 4

TOWERS: Mapping[str, tuple[RegressorConfig, RegressorConfig]] = {
    name: (config("valence"), config("arousal_dominance"))
    for name, config in (("shipped", embedded_config), ("paper", paper_config))
}
"""The two regressors of both pairs of towers."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations, and bytes of weights, of one part."""

    operations: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The costs of one utterance: the shared part, each regressor's own part, each regressor uncut, and the states."""

    shared: Cost
    own: tuple[Cost, ...]
    whole: tuple[Cost, ...]
    state_bytes: int


def cut_of_towers(model: Regressor, shares_streams: bool) -> Cut:
    """Return the cut behind both streams, or that in front of the first layers that may have adapters."""
    return Cut(len(audio_steps(model)) - 1, len(text_steps(model)) - 1) if shares_streams else Cut(0, 0)


def tokens_of(duration_s: float) -> int:
    """Return how many tokens speech of this length has on average."""
    return math.ceil(duration_s * _TOKENS_PER_S)


def floor_of(models: Sequence[Regressor], cut: Cut, duration_s: float) -> Floor:
    """Return the costs of one utterance of merged regressors that are cut in two; they may lie on the meta device.

    It has as many tokens as speech of this length has on average.
    """
    speech = _speech(models, duration_s, tokens_of(duration_s))
    shared, *own = _parts(models, cut, speech)
    states = SharedEncoder(models[0], cut).eval()(**speech)
    return Floor(
        shared=shared,
        own=tuple(own),
        whole=tuple(measure(model.eval(), speech) for model in models),
        state_bytes=sum(state.numel() * _FLOAT32_BYTES for state in states),
    )


def least_operations(models: Sequence[Regressor], cut: Cut, duration_s: float, tokens: int) -> int:
    """Return the operations of one utterance of regressors that are cut in two, as `floor_of` counts them."""
    return sum(cost.operations for cost in _parts(models, cut, _speech(models, duration_s, tokens)))


def _parts(models: Sequence[Regressor], cut: Cut, speech: Mapping[str, Tensor]) -> list[Cost]:
    """Return the costs of what is shared, and of each regressor's own part."""
    encoder = SharedEncoder(models[0], cut).eval()
    states = dict(zip(cut.states(models[0]), encoder(**speech), strict=True))
    behind = {"num_samples", "attention_mask"} | ({"waveform"} if cut.audio is None else set())
    behind |= {"input_ids"} if cut.text is None else set()
    given = {} if cut.pooled else {name: value for name, value in speech.items() if name in behind}
    return [measure(encoder, speech), *(measure(Head(model, cut).eval(), given | states) for model in models)]


def _speech(models: Sequence[Regressor], duration_s: float, tokens: int) -> dict[str, Tensor]:
    device = next(models[0].parameters()).device
    samples = round(duration_s * SPEECH_SAMPLE_RATE)
    return {
        "waveform": torch.zeros(1, samples, device=device),
        "num_samples": torch.full((1, 1), samples, device=device),
        "input_ids": torch.ones(1, tokens, dtype=torch.long, device=device),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long, device=device),
    }


@torch.no_grad()
def measure(module: nn.Module, inputs: Mapping[str, Tensor]) -> Cost:
    """Return the cost of one forward pass."""
    with _weights_read(module) as read, FlopCounterMode(display=False) as counter:
        module(**inputs)
    return Cost(counter.get_total_flops(), sum(read.values()) * _FLOAT32_BYTES)


@contextmanager
def _weights_read(module: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Yield the numbers of weights of the layers that run in the block."""
    read: dict[nn.Module, int] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Embedding):
            read[layer] = inputs[0].numel() * layer.embedding_dim
        else:
            read[layer] = sum(parameter.numel() for parameter in layer.parameters())

    layers = (layer for layer in module.modules() if not any(True for _ in layer.children()))
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


@click.command()
def main() -> None:
    """Print the floor of both pairs of towers as a table."""
    click.echo(floor_table())


def floor_table() -> str:
    """Return the floor of both pairs of towers as a Markdown table."""
    lines = [
        "| towers | s | tokens | shared | valence's own | arousal's and dominance's | uncut, both | ratio | states |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, configs in TOWERS.items():
        models = unweighted(configs)
        cut = cut_of_towers(models[0], shares_streams=name == "shipped")
        lines += [_row(name, duration_s, floor_of(models, cut, duration_s)) for duration_s in DURATIONS_S]
    return "\n".join(lines)


def unweighted(configs: Sequence[RegressorConfig]) -> list[Regressor]:
    """Return regressors on the meta device, without adapters: merged ones cost nothing."""
    with torch.device("meta"):
        return [build_regressor(replace(config, lora=None), None) for config in configs]


def _row(name: str, duration_s: float, floor: Floor) -> str:
    whole = Cost(sum(cost.operations for cost in floor.whole), sum(cost.weight_bytes for cost in floor.whole))
    parts = [floor.shared, *floor.own]
    ratio = whole.operations / sum(cost.operations for cost in parts)
    cells = [name, f"{duration_s:g}", f"{tokens_of(duration_s)}", *map(_cell, [*parts, whole])]
    return "| " + " | ".join([*cells, f"{ratio:.2f}", f"{floor.state_bytes / 1e3:.0f} kB"]) + " |"


def _cell(cost: Cost) -> str:
    return f"{cost.operations / 1e9:.2f} G, {cost.weight_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
