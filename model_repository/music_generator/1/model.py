"""A prompt and a specification to a stream of music; see `attune_ensemble.music`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_GENERATOR
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_GENERATOR, args, pb_utils)
        self.service = create_service(MUSIC_GENERATOR.name, self.triton)

    def execute(self, requests: list[Any]) -> None:
        self.triton.stream(requests, self.service.answer)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
