"""Inputs that do not belong together, or none of those that say what is wanted."""

from __future__ import annotations

from hypothesis import strategies as st

from attune_client.protocol.tensors import ModelSpec
from attune_ensemble.chaos.requests.building import ENOUGH, Draw, Fault, Message, add_input, sound_value

__all__ = ["FAULTS"]


def _odd_sources(draw: Draw, model: ModelSpec, message: Message) -> str:
    """Inputs that do not belong together, or none of those that say what is wanted."""
    sources = [tensor for tensor in model.inputs if tensor.name in ("text", "emotion", "music_spec", "audio")]
    chosen = draw(st.lists(st.sampled_from(sources), unique_by=lambda tensor: tensor.name))
    del message.inputs[:], message.raw_input_contents[:]
    raw = draw(st.booleans())
    for spec in chosen:
        add_input(message, model, spec, sound_value(spec), raw=raw)
    return " and ".join(spec.name for spec in chosen) or "none"


FAULTS: dict[str, Fault] = {
    "sources": (lambda model: model.name in ENOUGH, _odd_sources),
}
