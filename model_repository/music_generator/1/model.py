"""A prompt and a specification to a stream of music; see `attune_ensemble.music`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_GENERATOR
from attune_ensemble.music.registry import EngineOptions, default_engine, engine_metrics
from attune_ensemble.music.service import MusicService
from attune_ensemble.serving.adapter import Adapter


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_GENERATOR, args, pb_utils)
        settings = self.triton.settings
        options = EngineOptions(settings, self.triton.device, self.triton.folder)
        self.service = MusicService(default_engine(settings["engine"], options), float(settings["chunk_s"]), options)
        self.triton.publish(engine_metrics(options), self.service.metrics)

    def execute(self, requests: list[Any]) -> None:
        self.triton.stream(requests, self.service.play)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
