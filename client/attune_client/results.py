"""What the clients return: plain data with units, made from the tensors of the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["VAD", "ModelStatus", "MusicPrompt", "Segment", "SpeechEmotion", "TherapySession"]

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class VAD:
    """Valence (pleasantness), arousal (activation) and dominance (sense of control), each 1..5."""

    valence: float
    arousal: float
    dominance: float

    @classmethod
    def from_array(cls, values: npt.NDArray[np.float32]) -> VAD:
        """From an array [3]."""
        valence, arousal, dominance = (float(value) for value in values)
        return cls(valence, arousal, dominance)

    def to_dict(self) -> dict[str, float]:
        """As JSON-ready numbers, to four decimals."""
        return {name: round(getattr(self, name), 4) for name in ("valence", "arousal", "dominance")}


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech between two pauses, at most 8 s long."""

    start_s: float
    end_s: float
    transcript: str
    vad: VAD

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object; times to the millisecond."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "transcript": self.transcript,
            "vad": self.vad.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class SpeechEmotion:
    """What a recording says and how it feels: overall, and segment by segment.

    `probabilities` is [40], in the order of the emotion labels; `transcribe_s` and `recognise_s` are the
    server's own times, in seconds. `language` is the code of the language that the speech was taken for, with its
    probability; where it is not English, or nothing was said, there are no words.
    """

    transcript: str
    language: str
    language_probability: float
    vad: VAD
    emotion: str
    probabilities: npt.NDArray[np.float32]
    segments: tuple[Segment, ...]
    transcribe_s: float
    recognise_s: float

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> SpeechEmotion:
        """From the outputs of `speech_emotion`, or the first response of `music_therapy`."""
        path = zip(
            tensors["segment_start_s"],
            tensors["segment_end_s"],
            tensors["segment_transcript"],
            tensors["segment_vad"],
            strict=True,
        )
        return cls(
            transcript=_text(tensors, "transcript"),
            language=_text(tensors, "language"),
            language_probability=_number(tensors, "language_probability"),
            vad=VAD.from_array(tensors["vad"]),
            emotion=_text(tensors, "emotion"),
            probabilities=tensors["emotion_probabilities"],
            segments=tuple(
                Segment(float(start), float(end), words.decode(), VAD.from_array(vad))
                for start, end, words, vad in path
            ),
            transcribe_s=_number(tensors, "transcribe_s"),
            recognise_s=_number(tensors, "recognise_s"),
        )

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object."""
        return {
            "transcript": self.transcript,
            "language": self.language,
            "language_probability": round(self.language_probability, 4),
            "segments": [segment.to_dict() for segment in self.segments],
            "vad": self.vad.to_dict(),
            "emotion": self.emotion,
            "timings_s": {"transcribe": round(self.transcribe_s, 3), "recognise": round(self.recognise_s, 3)},
        }


@dataclass(frozen=True, slots=True)
class MusicPrompt:
    """What the knowledge base holds for an emotion, and the prompt made of it.

    `similarity` is the cosine similarity of query and entry; `music_spec` has tempo_bpm, mode, tonic,
    instruments and dynamics; `prompt_writer` says who wrote the prompt.
    """

    retrieved_emotion: str
    similarity: float
    description: str
    prompt: str
    prompt_writer: str
    music_spec: dict[str, Any]

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> MusicPrompt:
        """From the outputs of `music_prompt`, or the first response of `music_therapy`."""
        return cls(
            retrieved_emotion=_text(tensors, "retrieved_emotion"),
            similarity=_number(tensors, "similarity"),
            description=_text(tensors, "description"),
            prompt=_text(tensors, "prompt"),
            prompt_writer=_text(tensors, "prompt_writer"),
            music_spec=json.loads(_text(tensors, "music_spec")),
        )


@dataclass(frozen=True, slots=True)
class TherapySession:
    """Everything about a piece of music but the music: it comes first, before any audio.

    `engine` plays, at `sample_rate` Hz; `prompt_s` is the server's time for retrieval and prompt, in seconds.
    """

    speech: SpeechEmotion
    prompt: MusicPrompt
    prompt_s: float
    engine: str
    sample_rate: int

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> TherapySession:
        """From the first response of `music_therapy`."""
        return cls(
            speech=SpeechEmotion.from_tensors(tensors),
            prompt=MusicPrompt.from_tensors(tensors),
            prompt_s=_number(tensors, "prompt_s"),
            engine=_text(tensors, "engine"),
            sample_rate=int(tensors["sample_rate"][0]),
        )

    def to_dict(self, *, first_audio_s: float, total_s: float) -> dict[str, Any]:
        """As a JSON-ready object, with the caller's own times in seconds."""
        speech = self.speech.to_dict()
        timings = speech.pop("timings_s")
        return speech | {
            "similarity": round(self.prompt.similarity, 4),
            "description": self.prompt.description,
            "prompt": self.prompt.prompt,
            "prompt_writer": self.prompt.prompt_writer,
            "music_spec": self.prompt.music_spec,
            "engine": self.engine,
            "sample_rate": self.sample_rate,
            "timings_s": timings
            | {
                "prompt": round(self.prompt_s, 3),
                "first_audio": round(first_audio_s, 3),
                "total": round(total_s, 3),
            },
        }


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model of the server's repository: whether it can be called, and why not."""

    name: str
    version: str
    state: str
    reason: str


def _text(tensors: Tensors, name: str) -> str:
    value: bytes = tensors[name][0]
    return value.decode()


def _number(tensors: Tensors, name: str) -> float:
    return float(tensors[name][0])
