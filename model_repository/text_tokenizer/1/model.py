"""Transcripts to BERT tokens; see `attune_ensemble.speech.tokens`."""

from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import TEXT_TOKENIZER
from attune_ensemble.call import UNLIMITED
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.serving.services import create_service


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(TEXT_TOKENIZER, args, pb_utils)
        self.service = create_service(TEXT_TOKENIZER.name, self.triton)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.triton.answer(requests, partial(self.service.answer, context=UNLIMITED))

    def finalize(self) -> None:
        self.service.close()
        self.triton.close()
