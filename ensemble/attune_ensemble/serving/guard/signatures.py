"""What a model takes and answers, read from its configuration in the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from attune_client.protocol.models import INTERNAL_INPUTS, LEASE, MODELS, NEXT_PART, PART
from attune_client.protocol.tensors import Callee, TensorSpec

__all__ = ["Input", "Signature", "needed_by", "signature_of"]

_CALLS, _CALLS_STREAMING = "calls", "calls_streaming"
"""Parameters of a model's configuration: the models that it calls by itself, and those that a stream of its still needs
after the first response; each as the text of a `Callee`, with commas between."""

_BYTES = "BYTES"


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its datatype by the protocol's name, its shape without the batch (-1: any size).

    `max_dims` is the largest size of each of its dimensions, empty where nothing is said of it; `max_bytes` that of an
    element of BYTES. A server does not know them: they are declared in `attune_client.protocol.models`.
    """

    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    max_dims: tuple[int, ...] = ()
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """One model, as the guard has to know it.

    `max_batch` 0 means no batch dimension. `takes_lease`: it has an input for a lease, which is the guard's to fill;
    `in_parts`: one for the part of its stream, alike.
    `at_work` and `waiting`: how many requests it works at, and how many more it lets wait; None where it says nothing.
    `uses`: the models without which it cannot answer, an ensemble's steps among them; `uses_streaming`: those without
    which a stream that has begun cannot go on.
    """

    name: str
    inputs: Mapping[str, Input]
    outputs: frozenset[str]
    version: str
    max_batch: int = 0
    decoupled: bool = False
    takes_lease: bool = False
    in_parts: bool = False
    at_work: int | None = None
    waiting: int = 0
    uses: tuple[Callee, ...] = ()
    uses_streaming: tuple[Callee, ...] = ()


def signature_of(config: model_config_pb2.ModelConfig, version: str = "1") -> Signature:
    """The signature of that version of a model with that configuration."""
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    declared = {tensor.name: tensor for tensor in MODELS[config.name].inputs} if config.name in MODELS else {}
    inputs = {tensor.name: _input(tensor, declared.get(tensor.name)) for tensor in config.input}
    steps = tuple(Callee(step.model_name) for step in config.ensemble_scheduling.step)
    internal = {tensor.name for tensor in INTERNAL_INPUTS}
    called = _callees(parameters.get(_CALLS, ""))
    return Signature(
        config.name,
        {name: each for name, each in inputs.items() if name not in internal},
        frozenset(tensor.name for tensor in config.output) - {NEXT_PART.name},
        version,
        max_batch=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        takes_lease=LEASE.name in inputs,
        in_parts=PART.name in inputs,
        at_work=int(parameters["max_concurrent"]) if "max_concurrent" in parameters else None,
        waiting=int(parameters.get("max_waiting", 0)),
        uses=steps + called,
        uses_streaming=_callees(parameters[_CALLS_STREAMING]) if _CALLS_STREAMING in parameters else called,
    )


def _callees(text: str) -> tuple[Callee, ...]:
    return tuple(map(Callee.parse, filter(None, text.split(","))))


def _input(tensor: model_config_pb2.ModelInput, declared: TensorSpec | None) -> Input:
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return Input(
        _BYTES if name == "STRING" else name,
        tuple(tensor.dims),
        tensor.optional,
        max_dims=declared.max_shape if declared is not None else (),
        max_bytes=declared.max_bytes if declared is not None else None,
    )


def needed_by(
    model: str, signatures: Mapping[str, Signature], given: Collection[str] = (), *, has_begun: bool = False
) -> set[str]:
    """Names of the model and of every other one without which it cannot answer a request.

    `given` are names of the request's inputs; with none of them, whatever a request may need. `has_begun`: its stream
    has.
    """
    found, following = {model}, [model]
    while following:
        if (signature := signatures.get(following.pop())) is None:
            continue
        uses = signature.uses_streaming if has_begun and signature.name == model else signature.uses
        more = {callee.name for callee in uses if callee.is_called_for(given)} - found
        found |= more
        following += more
    return found
