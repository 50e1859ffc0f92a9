"""What is known of the regressors' cut without their weights: the states at it, and the tensors of the models there.

`attune_export.comparison` finds the cut; a file beside the graphs tells it to whoever needs the models' tensors, since
the protocol declares all that there may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attune_client.protocol.models import (
    ATTENTION_MASK,
    AUDIO_STATE,
    EMOTION_ENCODER,
    EMOTION_RECOGNITION,
    INPUT_IDS,
    NUM_SAMPLES,
    POOLED_STATE,
    SPEECH_INPUTS,
    TEXT_STATE,
    WAVEFORM,
)
from attune_client.protocol.profiles import CUT_FILE
from attune_client.protocol.tensors import ModelSpec, TensorSpec
from attune_export.errors import ExportError
from attune_weights.files import write_json

__all__ = ["EMBEDDING", "SHIPPED", "State", "States", "read_states", "specs_at", "write_states"]

EMBEDDING = "embedding"
"""Name of a stream's first step, in front of the first layer that may have adapters."""


@dataclass(frozen=True, slots=True)
class State:
    """A stream's state at the cut: the name of the step that it lies behind, and its width (the last dimension)."""

    behind: str
    width: int


States = Mapping[str, State]
"""The states at the cut by the names of their tensors; empty where the regressors share nothing."""

SHIPPED: States = {AUDIO_STATE.name: State("projection", 256), TEXT_STATE.name: State("projection", 256)}
"""Those of the regressors that ship: the committed configurations are for them, and a test compares both."""


def write_states(folder: Path, states: States) -> None:
    """Write the states into `folder`, as `read_states` reads them."""
    write_json(folder / CUT_FILE, {name: asdict(state) for name, state in states.items()})


def read_states(file: Path) -> States | None:
    """Return the states of a cut's file; None where there is no such file.

    Raises:
        ExportError: the file cannot be read.
    """
    if not file.is_file():
        return None
    try:
        return {name: State(**state) for name, state in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"{file} cannot be read ({error}): export again with --force") from error


def specs_at(states: States) -> dict[str, ModelSpec]:
    """Return the models at the cut with exactly the tensors that they have there, by name.

    They are the regressors, the encoder in front of them if they share anything, and the ensemble of all.
    """
    encoder = _encoder(states) if states else None
    exact = {step.name: _exact(step, states) for step in EMOTION_RECOGNITION.steps}
    steps = tuple(exact[step.name] for step in EMOTION_RECOGNITION.steps if step is not EMOTION_ENCODER)
    if encoder is not None:
        first = next(index for index, step in enumerate(EMOTION_RECOGNITION.steps) if step is EMOTION_ENCODER)
        steps = (*steps[:first], encoder, *steps[first:])
    ensemble = replace(EMOTION_RECOGNITION, steps=steps)
    return {model.name: model for model in (*steps, ensemble)}


def _encoder(states: States) -> ModelSpec:
    names = {name for state in states for name in _sources(state, states[state])}
    inputs = tuple(tensor for tensor in SPEECH_INPUTS if tensor.name in names)
    return replace(EMOTION_ENCODER, inputs=inputs, outputs=_found(EMOTION_ENCODER.outputs, states))


def _sources(name: str, state: State) -> Iterable[str]:
    """Return the names of the inputs that a state is made of."""
    if name == POOLED_STATE.name:
        return [tensor.name for tensor in SPEECH_INPUTS]
    if name == AUDIO_STATE.name:
        return [WAVEFORM.name, NUM_SAMPLES.name]
    return [INPUT_IDS.name] if state.behind == EMBEDDING else [INPUT_IDS.name, ATTENTION_MASK.name]


def _exact(model: ModelSpec, states: States) -> ModelSpec:
    """Return a model with the inputs that it has behind the cut; one that takes no states, unchanged."""
    if not set(model.inputs) & {AUDIO_STATE, TEXT_STATE, POOLED_STATE}:
        return model
    if POOLED_STATE.name in states:
        return replace(model, inputs=_found((POOLED_STATE,), states))
    taken = (
        _found((AUDIO_STATE,), states) or (WAVEFORM,),
        (NUM_SAMPLES,),
        _found((TEXT_STATE,), states) or (INPUT_IDS,),
        (ATTENTION_MASK,),
    )
    return replace(model, inputs=tuple(tensor for tensors in taken for tensor in tensors))


def _found(tensors: Iterable[TensorSpec], states: States) -> tuple[TensorSpec, ...]:
    """Return those of the tensors that there are, with their widths."""
    return tuple(
        replace(tensor, shape=(*tensor.shape[:-1], states[tensor.name].width), optional=False)
        for tensor in tensors
        if tensor.name in states
    )
