"""Encoded audio to speech segments and their words; see `attune_ensemble.speech.transcription`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import SPEECH_TO_TEXT
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.speech.transcription import Transcriber


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(SPEECH_TO_TEXT, args, pb_utils)
        settings = self.triton.settings
        self.transcriber = Transcriber(
            self.triton.folder / settings["weights"],
            device=self.triton.device,
            compute_type=settings["compute_type"],
            threads=int(settings["threads"]),
            beam_size=int(settings["beam_size"]),
            decoder=settings["decoder"],
        )

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.transcriber.answer)

    def finalize(self) -> None:
        self.transcriber.close()
        self.triton.close()
