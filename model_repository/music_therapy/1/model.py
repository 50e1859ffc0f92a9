"""A recording or a wish to everything about it, then its music as it is made; see `attune_ensemble.pipeline`."""

from collections.abc import Iterator
from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import MUSIC_THERAPY
from attune_client.protocol.tensors import Tensors
from attune_ensemble.pipeline import play_therapy
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.serving.adapter import Adapter


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(MUSIC_THERAPY, args, pb_utils)
        self.labels = [emotion.label for emotion in load_emotions()]

    def execute(self, requests: list[Any]) -> None:
        self.triton.stream(requests, self.play)

    def play(self, inputs: Tensors) -> Iterator[Tensors]:
        return play_therapy(inputs, self.labels, self.triton.call, self.triton.call_stream)
