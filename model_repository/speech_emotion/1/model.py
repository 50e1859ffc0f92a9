"""Encoded audio to words, VAD and emotion, overall and by segment; see `attune_ensemble.pipeline`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import SPEECH_EMOTION
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(SPEECH_EMOTION, args, pb_utils)
        self.service = create_service(SPEECH_EMOTION.name, self.triton)

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.service.answer)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
