"""What is asked of each model: requests made of clips, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.serving.clips import Clip
from attune_client.protocol.errors import ServerError
from attune_client.protocol.models import (
    EMOTION_RECOGNITION,
    MUSIC_THERAPY,
    NUM_SAMPLES,
    SPEECH_EMOTION,
    SPEECH_SAMPLE_RATE,
    SPEECH_TO_TEXT,
)
from attune_client.protocol.tensors import ModelSpec, Tensors
from attune_client.wire import speech_inputs, therapy_inputs

__all__ = ["TARGETS", "Request", "Target", "in_random_order", "make_target", "speech_rows"]


@dataclass(frozen=True, slots=True)
class Request:
    """The inputs of one request; `audio_s` seconds of audio are what a real-time factor is taken of."""

    name: str
    audio_s: float
    inputs: Tensors = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A model, and the requests that are sent to it."""

    model: ModelSpec
    requests: tuple[Request, ...]


TARGETS = (EMOTION_RECOGNITION.name, SPEECH_EMOTION.name, MUSIC_THERAPY.name)
"""The models that a load may be of."""


async def make_target(client: AsyncAttuneClient, model: str, clips: Sequence[Clip], music_s: float) -> Target:
    """The requests to a model, one or more for each clip.

    `emotion_recognition` is asked segment by segment for what the server's own `speech_to_text` makes of a clip:
    waveforms, lengths and words as they are inside the pipeline. Audio is that of the recording, and of the music of
    `music_s` seconds for `music_therapy`.

    Raises:
        AttuneError: what the server answered, for a clip without speech for instance.
    """
    match model:
        case EMOTION_RECOGNITION.name:
            rows = [row for clip in clips for row in await speech_rows(client, clip)]
            return Target(EMOTION_RECOGNITION, tuple(rows))
        case SPEECH_EMOTION.name:
            requests = (Request(clip.name, clip.seconds, speech_inputs(clip.encoded)) for clip in clips)
            return Target(SPEECH_EMOTION, tuple(requests))
        case MUSIC_THERAPY.name:
            inputs = (therapy_inputs(clip.encoded, duration_s=music_s, seed=0) for clip in clips)
            requests = (Request(clip.name, music_s, each) for clip, each in zip(clips, inputs, strict=True))
            return Target(MUSIC_THERAPY, tuple(requests))
    raise ValueError(f"no load is known of {model}")


async def speech_rows(client: AsyncAttuneClient, clip: Clip) -> list[Request]:
    """A request to `emotion_recognition` for each segment of a clip; raises what the server answers."""
    speech = await client.infer(SPEECH_TO_TEXT, speech_inputs(clip.encoded))
    names = [tensor.name for tensor in EMOTION_RECOGNITION.inputs]
    if not all(name in speech for name in names):
        raise ServerError(f"{SPEECH_TO_TEXT.name} answered without {', '.join(names)}")
    lengths_s = speech[NUM_SAMPLES.name][:, 0] / SPEECH_SAMPLE_RATE
    return [
        Request(f"{clip.name}, segment {row}", float(length_s), {name: speech[name][row : row + 1] for name in names})
        for row, length_s in enumerate(lengths_s)
    ]


def in_random_order(requests: Iterable[Request], seed: int) -> Iterator[Request]:
    """All requests in a random order, then in another one, and so on; the same ones for the same seed."""
    requests = tuple(requests)
    random = Random(seed)
    while requests:
        yield from random.sample(requests, len(requests))
