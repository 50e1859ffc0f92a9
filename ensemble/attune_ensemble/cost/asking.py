"""One request to the models in this process, timed as one to a server is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import numpy.typing as npt

from attune_client.bench.serving.asking import Sample, clock, stages_of
from attune_client.bench.serving.targets import Request
from attune_client.protocol.errors import AttuneError
from attune_client.protocol.tensors import ModelSpec, Tensors

__all__ = ["LocalAsk", "Models"]


class Models(Protocol):
    """What of `LocalModels` is asked."""

    def call(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], /) -> Tensors:
        """Return the outputs of a model."""
        ...


class LocalAsk:
    """Asks a model of `models` in at most so many threads; a context manager."""

    def __init__(self, models: Models, model: ModelSpec, threads: int) -> None:
        self._models, self._model = models, model
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="local")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    async def __call__(self, request: Request, planned_s: float) -> Sample:
        """Ask, and wait for the answer; an `AttuneError` becomes the sample's kind of error."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, request, planned_s)

    def _ask(self, request: Request, planned_s: float) -> Sample:
        sent_s, stages_s, error = clock(), {}, ""
        try:
            stages_s = stages_of(self._models.call(self._model.name, request.inputs))
        except AttuneError as raised:
            error = raised.code
        ended_s = clock()
        return Sample(planned_s, sent_s, ended_s, ended_s, request.audio_s, error, stages_s)
