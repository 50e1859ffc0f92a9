"""What the BLS models do, as plain functions over a `call`: testable without a server.

A narration is cut into segments, all segments are recognised together, and the whole takes their
duration-weighted mean; its emotion leads to a music description, a prompt, and the music.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import REGRESSOR_MAX_BATCH
from attune_ensemble.tensors import Tensors, bytes_tensor, decode

__all__ = ["Call", "CallStream", "play_therapy", "recognise_speech", "write_prompt"]

Call = Callable[[str, Mapping[str, npt.NDArray[Any]]], Tensors]
"""Calls one model of the repository by name; raises the `AttuneError` that it answered."""

CallStream = Callable[[str, Mapping[str, npt.NDArray[Any]]], Generator[Tensors, None, None]]
"""Calls one streaming model by name; closing the generator stops that model."""

_MUSIC_OPTIONS = ("duration_s", "seed", "engine")


def recognise_speech(
    audio: npt.NDArray[np.object_],
    labels: Sequence[str],
    call: Call,
    other_languages: npt.NDArray[np.object_] | None = None,
) -> Tensors:
    """From one encoded recording, BYTES [1], to the outputs of `speech_emotion`.

    `other_languages`, BYTES [1], says what becomes of speech that is not English.

    Raises the `InvalidAudio` that fits when the recording cannot be used.
    """
    started_s = time.perf_counter()
    option = {} if other_languages is None else {"other_languages": other_languages}
    speech = call("speech_to_text", {"audio": audio} | option)
    transcribed_s = time.perf_counter()
    segment_vad = _recognise_segments(speech, call)
    vad = weighted_mean(segment_vad, speech["num_samples"][:, 0])
    probabilities = _classify(vad, call)
    recognised_s = time.perf_counter()
    transcripts = [decode(text) for text in speech["transcript"][:, 0]]
    return {
        "transcript": bytes_tensor(" ".join(filter(None, transcripts))),
        "language": speech["language"],
        "language_probability": speech["language_probability"],
        "vad": vad,
        "emotion": bytes_tensor(labels[int(probabilities.argmax())]),
        "emotion_probabilities": probabilities,
        "segment_start_s": speech["start_s"],
        "segment_end_s": speech["end_s"],
        "segment_transcript": bytes_tensor(*transcripts),
        "segment_vad": segment_vad,
        "transcribe_s": _seconds(transcribed_s - started_s),
        "recognise_s": _seconds(recognised_s - transcribed_s),
    }


def _recognise_segments(speech: Tensors, call: Call) -> npt.NDArray[np.float32]:
    """VAD [S, 3] of all segments: one batch, or several where there are more than a batch holds."""
    rows = ("waveform", "num_samples", "transcript")
    parts = [
        call("emotion_recognition", {name: speech[name][start : start + REGRESSOR_MAX_BATCH] for name in rows})
        for start in range(0, len(speech["waveform"]), REGRESSOR_MAX_BATCH)
    ]
    return np.concatenate([part["vad"] for part in parts])


def weighted_mean(vad: npt.NDArray[np.float32], weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Mean [3] of VAD [S, 3], each segment counting as long as it lasts."""
    return np.average(vad, axis=0, weights=weights).astype(np.float32)


def _classify(vad: npt.NDArray[np.float32], call: Call) -> npt.NDArray[np.float32]:
    answer = call("emotion_classifier", {"valence": vad[None, :1], "arousal_dominance": vad[None, 1:]})
    probabilities: npt.NDArray[np.float32] = answer["emotion_probabilities"][0]
    return probabilities


def write_prompt(emotion: npt.NDArray[np.object_], vad: npt.NDArray[np.float32], call: Call) -> Tensors:
    """From the emotion, BYTES [1], and VAD [3] to the outputs of `music_prompt`, and `prompt_s`."""
    started_s = time.perf_counter()
    prompt = call("music_prompt", {"emotion": emotion, "vad": vad})
    return prompt | {"prompt_s": _seconds(time.perf_counter() - started_s)}


def play_therapy(
    inputs: Tensors, labels: Sequence[str], call: Call, call_stream: CallStream
) -> Generator[Tensors, None, None]:
    """The responses of `music_therapy`: first everything but the music, then the music as it is made.

    Raises the `InvalidAudio` or `InvalidOption` that fits before anything is yielded.
    """
    speech = recognise_speech(inputs["audio"], labels, call, inputs.get("other_languages"))
    prompt = write_prompt(speech["emotion"], speech["vad"], call)
    wanted = {name: prompt[name] for name in ("prompt", "music_spec")}
    options = {name: inputs[name] for name in _MUSIC_OPTIONS if name in inputs}
    with closing(call_stream("music_generator", wanted | options)) as music:
        announcement = next(music)
        yield speech | prompt | announcement
        yield from music


def _seconds(value: float) -> npt.NDArray[np.float32]:
    return np.array([value], np.float32)
