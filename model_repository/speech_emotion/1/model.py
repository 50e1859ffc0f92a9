"""Encoded audio to words, VAD and emotion, overall and by segment; see `attune_ensemble.pipeline`."""

from typing import Any

import triton_python_backend_utils as pb_utils

from attune_client.protocol.models import SPEECH_EMOTION
from attune_client.protocol.tensors import Tensors
from attune_ensemble.pipeline import recognise_speech
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.serving.adapter import Adapter


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.triton = Adapter(SPEECH_EMOTION, args, pb_utils)
        self.labels = [emotion.label for emotion in load_emotions()]

    def execute(self, requests: list[Any]) -> None:
        self.triton.answer_concurrently(requests, self.recognise)

    def recognise(self, inputs: Tensors) -> Tensors:
        return recognise_speech(inputs["audio"], self.labels, self.triton.call, inputs.get("other_languages"))
