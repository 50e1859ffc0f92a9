"""An emotion, or free text, to a music description and a prompt; see `attune_ensemble.prompting.describe`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_PROMPT
from attune_client.protocol.tensors import Tensors
from attune_ensemble.prompting.describe import MusicDescriber
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.retrieval import KnowledgeIndex
from attune_ensemble.prompting.writers.registry import create_writer
from attune_ensemble.serving.adapter import Adapter


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_PROMPT, args, pb_utils)
        emotions = load_emotions()
        index = KnowledgeIndex(self.triton.folder / self.triton.settings["weights"], emotions)
        self.describer = MusicDescriber(emotions, index, create_writer(self.triton.settings["prompt_writer"]))

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.describe)

    def describe(self, inputs: Tensors) -> dict[str, Any]:
        return self.describer.describe(inputs, self.triton.call)
