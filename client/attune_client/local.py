"""The client's methods for models in this process: the same calls, results and errors, without a server.

with LocalModels("model_repository") as models:  # attune_ensemble.serving.local
    client = LocalClient(models)
    print(client.analyse("narration.wav").emotion)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from attune_client.client import BaseClient
from attune_client.protocol.tensors import ModelSpec, Tensors

__all__ = ["LocalClient", "Models"]

Inputs = Mapping[str, npt.NDArray[Any]]


class Models(Protocol):
    """The interface of `attune_ensemble.serving.local.LocalModels` that the client uses."""

    def call(self, name: str, inputs: Inputs, /) -> Tensors:
        """Return the outputs of one model by name."""
        ...

    def call_stream(self, name: str, inputs: Inputs, /) -> Generator[Tensors, None, None]:
        """Yield the responses of a streaming model."""
        ...


class LocalClient(BaseClient):
    """A client of models in this process, which their owner has to close."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def infer(self, model: ModelSpec, inputs: Inputs) -> Tensors:
        """See `BaseClient`."""
        return self._models.call(model.name, inputs)

    def stream(self, model: ModelSpec, inputs: Inputs) -> Generator[Tensors, None, None]:
        """See `BaseClient`."""
        return self._models.call_stream(model.name, inputs)
