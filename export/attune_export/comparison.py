"""Where trained regressors begin to differ: the longest cut in front of which they compute the same, bit for bit.

Each model is traced to a graph that has its state behind every step as an output. Every value of a graph has a digest
of the operation that makes it, of that operation's arguments and, through theirs, of everything behind it down to the
weights' bytes and the inputs. Two states of one digest are the same function of the inputs; no name decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from attune_training.models.cut import Cut, EveryState
from attune_training.models.regressor import Regressor

__all__ = ["find_cut"]

_DYNAMIC = {
    "waveform": {0: "batch", 1: "samples"},
    "num_samples": {0: "batch"},
    "input_ids": {0: "batch", 1: "tokens"},
    "attention_mask": {0: "batch", 1: "tokens"},
}
_SAMPLES, _TOKENS = 16_000, 8


def find_cut(models: Sequence[Regressor]) -> Cut:
    """Return the longest cut in front of which all models compute the same; their adapters have to be merged.

    It is empty if the models share nothing.
    """
    audio, text, pooled = zip(*(_state_digests(model) for model in models), strict=True)
    if len(set(pooled)) == 1:
        return Cut(pooled=True)
    return Cut(_last_common(audio), _last_common(text))


def _last_common(digests: Sequence[Sequence[str]]) -> int | None:
    """Return the index of the last state that is the same everywhere; None if none is."""
    common = [index for index, states in enumerate(zip(*digests, strict=False)) if len(set(states)) == 1]
    return common[-1] if common else None


def _state_digests(model: Regressor) -> tuple[list[str], list[str], str]:
    """Return the digests of a model's states, in the structure that `EveryState` returns."""
    inputs = {
        "waveform": torch.zeros(2, _SAMPLES),
        "num_samples": torch.full((2, 1), _SAMPLES),
        "input_ids": torch.ones(2, _TOKENS, dtype=torch.long),
        "attention_mask": torch.ones(2, _TOKENS, dtype=torch.long),
    }
    dynamic = {
        name: {axis: Dim.DYNAMIC if size == "batch" else Dim.AUTO for axis, size in axes.items()}
        for name, axes in _DYNAMIC.items()
    }
    with torch.no_grad():
        program = torch.export.export(EveryState(model, Cut()).eval(), (), inputs, dynamic_shapes=dynamic)
    digests = _value_digests(program)
    [output] = (node for node in program.graph.nodes if node.op == "output")
    structure = program.call_spec.out_spec
    assert structure is not None
    states: tuple[list[str], list[str], str] = pytree.tree_unflatten(
        [digests[node] for node in output.args[0]], structure
    )
    return states


def _value_digests(program: ExportedProgram) -> dict[Node, str]:
    """Return a digest of every value of the graph."""
    signature = program.graph_signature
    constants = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants |= signature.inputs_to_lifted_tensor_constants
    tensors: Mapping[str, Any] = {**program.constants, **program.state_dict}
    digests: dict[Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            stored = constants.get(node.name)
            digests[node] = _digest("input", node.name) if stored is None else _tensor_digest(tensors[stored])
        elif node.op == "call_function":
            described = map_aggregate((node.args, node.kwargs), lambda value: _describe(value, digests))
            digests[node] = _digest(str(node.target), repr(described))
        elif node.op != "output":
            # A graph inside the graph: none of the models has one, and its content is not compared.
            digests[node] = _digest("unknown", repr(id(node)))
    return digests


def _describe(value: Any, digests: Mapping[Node, str]) -> str:
    return digests[value] if isinstance(value, Node) else f"{type(value).__name__} {value!r}"


def _tensor_digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
