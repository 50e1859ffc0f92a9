"""Transcripts to BERT tokens; see `attune_ensemble.speech.tokens`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import TEXT_TOKENIZER
from attune_ensemble.serving.adapter import Adapter
from attune_ensemble.speech.tokens import TextTokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(TEXT_TOKENIZER, args, pb_utils)
        self.tokenizer = TextTokenizer(self.triton.folder / self.triton.settings["weights"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.triton.answer(requests, self.tokenizer.answer)

    def finalize(self) -> None:
        self.triton.close()
