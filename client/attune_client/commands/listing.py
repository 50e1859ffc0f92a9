"""`attune models`: the models of a server."""

from __future__ import annotations

import dataclasses

import click

from attune_client.client import AttuneClient
from attune_client.commands.options import json_option, server_options
from attune_client.commands.printing import Printer, echo_json
from attune_client.protocol.models import MODELS
from attune_client.protocol.tensors import TensorSpec
from attune_client.results import ModelStatus

__all__ = ["models"]


@click.command()
@json_option
@server_options
def models(as_json: bool, url: str, timeout_s: float | None) -> None:
    """List the server's models, their state and their tensors."""
    with AttuneClient(url, timeout_s=timeout_s) as client:
        statuses = client.models()
    if as_json:
        echo_json([_as_object(status) for status in statuses])
    else:
        Printer().table(("model", "state", "inputs", "outputs"), map(_row, statuses))


def _row(status: ModelStatus) -> tuple[str, str, str, str]:
    state = f"{status.state or 'NOT LOADED'} {status.reason}".strip()
    inputs, outputs = _tensors(status.name)
    return status.name, state, ", ".join(inputs), ", ".join(outputs)


def _as_object(status: ModelStatus) -> dict[str, object]:
    inputs, outputs = _tensors(status.name)
    return dataclasses.asdict(status) | {"inputs": inputs, "outputs": outputs}


def _tensors(name: str) -> tuple[list[str], list[str]]:
    """Format the names of a model's inputs and outputs; optional ones have a question mark."""
    spec = MODELS.get(name)
    return ([], []) if spec is None else (_names(spec.inputs), _names(spec.outputs))


def _names(tensors: tuple[TensorSpec, ...]) -> list[str]:
    return [f"{tensor.name}{'?' if tensor.optional else ''}" for tensor in tensors]
