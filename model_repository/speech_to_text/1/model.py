"""Encoded audio to speech segments and their words; see `attune_ensemble.speech.transcription`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import SPEECH_TO_TEXT
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(SPEECH_TO_TEXT, args, pb_utils)
        self.service = create_service(SPEECH_TO_TEXT.name, self.triton)

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.service.answer)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
