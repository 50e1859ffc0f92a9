"""The stages of the pipeline, in the order in which a request passes through them: what a client shows of its way.

`attune_ensemble.pipeline` does them and tells its time for each; clients name the times by the stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from attune_client.protocol.models import (
    EMOTION_CLASSIFIER,
    EMOTION_RECOGNITION,
    MUSIC_GENERATOR,
    MUSIC_PROMPT,
    PROMPT_TIME,
    RECOGNISE_TIME,
    SPEECH_TO_TEXT,
    TRANSCRIBE_TIME,
)
from attune_client.protocol.tensors import ModelSpec, TensorSpec

__all__ = ["PLAY", "PROMPT", "RECOGNISE", "STAGES", "TRANSCRIBE", "Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: the models that are called for it, in their order, and the output that tells the server's time for it.

    `time` is None for the music, which is sent while it is made.
    """

    name: str
    models: tuple[ModelSpec, ...]
    time: TensorSpec | None = None


TRANSCRIBE = Stage("transcribe", (SPEECH_TO_TEXT,), TRANSCRIBE_TIME)
RECOGNISE = Stage("recognise", (EMOTION_RECOGNITION, EMOTION_CLASSIFIER), RECOGNISE_TIME)
PROMPT = Stage("prompt", (MUSIC_PROMPT,), PROMPT_TIME)
PLAY = Stage("play", (MUSIC_GENERATOR,))

STAGES = (TRANSCRIBE, RECOGNISE, PROMPT, PLAY)
"""All of them, in order. A wish begins at `PROMPT`, or with VAD alone at the classifier."""
