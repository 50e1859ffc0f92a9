"""From a request's tensors to an engine, and from its audio back to tensors: what `music_generator` serves."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import fields
from typing import Any

import numpy as np

from attune_ensemble.music.engine import MusicEngine, MusicRequest
from attune_ensemble.music.engines import EngineOptions, create_engine
from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.music.spec import MusicSpec
from attune_ensemble.tensors import Tensors, text_of

DEFAULT_DURATION_S = 30.0
DEFAULT_SEED = 0
_SAMPLING = tuple(field.name for field in fields(SamplingSettings))


class MusicService:
    """Answers requests with one of the engines; each engine is made once, when it is first asked for.

    `default_engine` plays where the request names none; a chunk lasts about `chunk_s` seconds.
    """

    def __init__(self, default_engine: str, chunk_s: float, options: EngineOptions) -> None:
        self._default_engine = default_engine
        self._chunk_s = chunk_s
        self._options = options
        self._engines: dict[str, MusicEngine] = {}
        self._making = threading.Lock()
        self._engine(default_engine)  # at start-up, not in front of the first listener

    def play(self, inputs: Tensors) -> Generator[dict[str, Any], None, None]:
        """First `engine` and `sample_rate` alone, then one `music` [N, C] after the other, or nothing for now.

        Raises `InvalidOption` for an unknown engine, or a length, seed or specification out of range.
        """
        engine = self._choose(inputs)
        request = read_request(inputs)
        yield {"engine": engine.name, "sample_rate": [engine.sample_rate]}
        for chunk in engine.generate(request, self._chunk_s):
            yield {"music": chunk} if len(chunk) else {}

    def metrics(self) -> dict[str, float]:
        """What the engines that were made count, by name."""
        return {name: value for engine in tuple(self._engines.values()) for name, value in engine.metrics().items()}

    def _engine(self, name: str) -> MusicEngine:
        if name not in self._engines:  # whoever asks for another engine does not wait while this one is made
            with self._making:  # two requests at once must not make two
                if name not in self._engines:
                    self._engines[name] = create_engine(name, self._options)
        return self._engines[name]

    def _choose(self, inputs: Tensors) -> MusicEngine:
        name = text_of(inputs["engine"]) if "engine" in inputs else ""
        return self._engine(name or self._default_engine)


def read_request(inputs: Tensors) -> MusicRequest:
    """The request in an engine's terms; raises `InvalidOption` for a length, seed or specification out of range."""
    return MusicRequest(
        prompt=text_of(inputs["prompt"]),
        spec=MusicSpec.from_json(text_of(inputs["music_spec"])),
        duration_s=float(inputs.get("duration_s", np.array([DEFAULT_DURATION_S])).flat[0]),
        seed=int(inputs.get("seed", np.array([DEFAULT_SEED])).flat[0]),
        sampling=_read_sampling(inputs),
    )


def _read_sampling(inputs: Tensors) -> SamplingSettings | None:
    given = {name: inputs[name].flat[0].item() for name in _SAMPLING if name in inputs}
    return SamplingSettings(**given) if given else None
