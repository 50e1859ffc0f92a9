"""An emotion, or free text, to a music description and a prompt; see `attune_ensemble.prompting.describe`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_PROMPT
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_PROMPT, args, pb_utils)
        self.service = create_service(MUSIC_PROMPT.name, self.triton)

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.service.answer)

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
