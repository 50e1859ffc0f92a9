"""A recording or a wish to everything about it, then its music as it is made; see `attune_ensemble.pipeline`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_THERAPY
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_THERAPY, args, pb_utils)
        self.service = create_service(MUSIC_THERAPY.name, self.triton)

    def execute(self, requests: list[Any]) -> None:
        self.triton.stream(requests, self.service.answer)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
