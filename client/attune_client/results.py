"""Results of the clients: plain data with units, made from the tensors of the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import (
    CRISIS_KIND,
    CRISIS_PLACE,
    PROMPT_TIME,
    RECOGNISE_TIME,
    TRANSCRIBE_TIME,
    UNSURE,
    VAD_DIMENSIONS,
    CrisisKind,
)
from attune_client.protocol.stages import PROMPT, RECOGNISE, TRANSCRIBE
from attune_client.protocol.tensors import Tensors, decode, text_of
from attune_client.protocol.version import version

__all__ = ["VAD", "CrisisWords", "ModelStatus", "MusicPrompt", "Segment", "SpeechEmotion", "TherapySession"]


_NEIGHBOURS = 2


@dataclass(frozen=True, slots=True)
class VAD:
    """Valence (pleasantness), arousal (activation) and dominance (sense of control), each 1..5."""

    valence: float
    arousal: float
    dominance: float

    @classmethod
    def from_array(cls, values: npt.NDArray[np.float32]) -> VAD:
        """Convert an array [3]."""
        valence, arousal, dominance = (float(value) for value in values)
        return cls(valence, arousal, dominance)

    def __iter__(self) -> Iterator[float]:
        return iter((self.valence, self.arousal, self.dominance))

    def to_dict(self) -> dict[str, float]:
        """As JSON-ready numbers, to four decimals."""
        return {name: round(getattr(self, name), 4) for name in VAD_DIMENSIONS}


@dataclass(frozen=True, slots=True)
class Segment:
    """A speech segment between two pauses, at most 8 s long, and its emotion."""

    start_s: float
    end_s: float
    transcript: str
    vad: VAD
    emotion: str

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object; times to the millisecond."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "transcript": self.transcript,
            "vad": self.vad.to_dict(),
            "emotion": self.emotion,
        }


@dataclass(frozen=True, slots=True)
class CrisisWords:
    """Where words stand that speak of suicide, self-harm or harm to others, as a simple rule of words has it.

    They begin at character `start` of segment `segment` and end before character `end` of segment `last_segment`,
    which is another one where a pause has cut them; all count from 0. Of a text, both segments are 0.

    It is no diagnosis and says nothing of the person: a reason to show `attune_client.help_lines.crisis_notice`, and
    none to store or tell anything.
    """

    kind: CrisisKind
    segment: int
    start: int
    last_segment: int
    end: int

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object."""
        return {
            "kind": self.kind.value,
            "segment": self.segment,
            "start": self.start,
            "last_segment": self.last_segment,
            "end": self.end,
        }


@dataclass(frozen=True, slots=True)
class SpeechEmotion:
    """Transcript and emotion of a recording, overall and by segment.

    `probabilities` has all 40 emotions by label, in the classifier's order; `is_unsure` says that none of them stands
    out, and `neighbours` are the next ones. `transcribe_s` and `recognise_s` are the
    server's processing times, in seconds. `language` is the code of the identified language, with its probability; if
    it is not English, or there are no intelligible words, the transcript is empty. `crisis` is where words speak of a
    crisis; none found does not mean that there is none.
    """

    transcript: str
    language: str
    language_probability: float
    vad: VAD
    emotion: str
    probabilities: Mapping[str, float]
    segments: tuple[Segment, ...]
    transcribe_s: float
    recognise_s: float
    crisis: tuple[CrisisWords, ...] = ()
    is_unsure: bool = False

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> SpeechEmotion:
        """From the outputs of `speech_emotion`, or the first response of `music_therapy`."""
        path = zip(
            tensors["segment_start_s"],
            tensors["segment_end_s"],
            tensors["segment_transcript"],
            tensors["segment_vad"],
            tensors["segment_emotion"],
            strict=True,
        )
        return cls(
            transcript=_text(tensors, "transcript"),
            language=_text(tensors, "language"),
            language_probability=_number(tensors, "language_probability"),
            vad=VAD.from_array(tensors["vad"]),
            emotion=_text(tensors, "emotion"),
            probabilities=_probabilities(tensors),
            segments=tuple(
                Segment(float(start), float(end), decode(words), VAD.from_array(vad), decode(emotion))
                for start, end, words, vad, emotion in path
            ),
            transcribe_s=_number(tensors, TRANSCRIBE_TIME.name),
            recognise_s=_number(tensors, RECOGNISE_TIME.name),
            crisis=_crisis(tensors),
            is_unsure=bool(tensors[UNSURE.name][0]),
        )

    @property
    def neighbours(self) -> tuple[str, ...]:
        """The two most probable emotions beside the chosen one."""
        ranked = sorted(self.probabilities, key=self.probabilities.__getitem__, reverse=True)
        return tuple(label for label in ranked if label != self.emotion)[:_NEIGHBOURS]

    @property
    def probability_array(self) -> npt.NDArray[np.float32]:
        """The probabilities [40], in the classifier's order."""
        return np.array(list(self.probabilities.values()), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object; the likeliest emotion first."""
        return {
            "transcript": self.transcript,
            "language": self.language,
            "language_probability": round(self.language_probability, 4),
            "segments": [segment.to_dict() for segment in self.segments],
            "crisis": [words.to_dict() for words in self.crisis],
            "vad": self.vad.to_dict(),
            "emotion": self.emotion,
            "is_unsure": self.is_unsure,
            "neighbours": list(self.neighbours),
            "probabilities": _ranked(self.probabilities),
            "timings_s": {TRANSCRIBE.name: round(self.transcribe_s, 3), RECOGNISE.name: round(self.recognise_s, 3)},
        }


@dataclass(frozen=True, slots=True)
class MusicPrompt:
    """The knowledge base's entry for an emotion, and the prompt made of it.

    `similarity` is the cosine similarity of query and entry; `music_spec` has tempo_bpm, mode, tonic,
    instruments and dynamics; `prompt_writer` is the name of the prompt's writer. If the music was specified by the
    caller, nothing is retrieved: entry, similarity and description are None.
    """

    retrieved_emotion: str | None
    similarity: float | None
    description: str | None
    prompt: str
    prompt_writer: str
    music_spec: dict[str, Any]

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> MusicPrompt:
        """From the outputs of `music_prompt`, or the first response of `music_therapy`."""
        found = "retrieved_emotion" in tensors
        return cls(
            retrieved_emotion=_text(tensors, "retrieved_emotion") if found else None,
            similarity=_number(tensors, "similarity") if found else None,
            description=_text(tensors, "description") if found else None,
            prompt=_text(tensors, "prompt"),
            prompt_writer=_text(tensors, "prompt_writer"),
            music_spec=json.loads(_text(tensors, "music_spec")),
        )

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready object, without the fields that were not retrieved."""
        values = {
            "retrieved_emotion": self.retrieved_emotion,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "description": self.description,
            "prompt": self.prompt,
            "prompt_writer": self.prompt_writer,
            "music_spec": self.music_spec,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class TherapySession:
    """Everything about a piece of music except the audio; received before any audio.

    `speech` is None for music without a recording; `emotion`, `vad` and `probabilities` are those of the speech, or
    those that the caller gave or the server derived. `engine` generates `duration_s` seconds at `sample_rate` Hz from
    `seed`; `prompt_s` is the server's time for retrieval and prompt, in seconds.

    `crisis` is where words of the recording, or of the text that the music is for, speak of a crisis. Then the prompt
    is that of a gentle description, whatever the emotion.

    The prompt's `prompt` and `music_spec` with `duration_s`, `seed` and `engine` reproduce the piece:
    `client.play(spec=..., text=..., ...)`.
    """

    speech: SpeechEmotion | None
    emotion: str | None
    vad: VAD | None
    probabilities: Mapping[str, float] | None
    prompt: MusicPrompt
    prompt_s: float
    engine: str
    sample_rate: int
    duration_s: float
    seed: int
    server_version: str
    crisis: tuple[CrisisWords, ...] = ()

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> TherapySession:
        """From the first response of `music_therapy`."""
        return cls(
            speech=SpeechEmotion.from_tensors(tensors) if "transcript" in tensors else None,
            emotion=_text(tensors, "emotion") if "emotion" in tensors else None,
            vad=VAD.from_array(tensors["vad"]) if "vad" in tensors else None,
            probabilities=_probabilities(tensors) if "emotion_probabilities" in tensors else None,
            prompt=MusicPrompt.from_tensors(tensors),
            prompt_s=_number(tensors, PROMPT_TIME.name),
            engine=_text(tensors, "engine"),
            sample_rate=int(tensors["sample_rate"][0]),
            duration_s=round(_number(tensors, "duration_s"), 4),  # 3.3 is 3.299999952 in 32 bits
            seed=int(tensors["seed"][0]),
            server_version=_text(tensors, "server_version"),
            crisis=_crisis(tensors) if CRISIS_KIND.name in tensors else (),
        )

    def to_dict(self, *, first_audio_s: float | None = None, total_s: float | None = None) -> dict[str, Any]:
        """As a JSON-ready object, with the caller's own times in seconds, without missing fields."""
        speech = self.speech.to_dict() if self.speech else self._wish()
        timings = speech.pop("timings_s", {}) | {PROMPT.name: round(self.prompt_s, 3)}
        own_times = {"first_audio": first_audio_s, "total": total_s}
        return (
            speech
            | self.prompt.to_dict()
            | {
                "engine": self.engine,
                "sample_rate": self.sample_rate,
                "duration_s": self.duration_s,
                "seed": self.seed,
                "versions": {"server": self.server_version, "client": version()},
                "timings_s": timings | {k: round(value, 3) for k, value in own_times.items() if value is not None},
            }
        )

    def _wish(self) -> dict[str, Any]:
        values = {
            "crisis": [words.to_dict() for words in self.crisis] or None,
            "vad": self.vad and self.vad.to_dict(),
            "emotion": self.emotion,
            "probabilities": self.probabilities and _ranked(self.probabilities),
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model of the server's repository: its state, and the reason if it is not ready."""

    name: str
    version: str
    state: str
    reason: str


def _crisis(tensors: Tensors) -> tuple[CrisisWords, ...]:
    finds = zip(tensors[CRISIS_KIND.name], tensors[CRISIS_PLACE.name].tolist(), strict=True)
    return tuple(CrisisWords(CrisisKind(decode(kind)), *place) for kind, place in finds)


def _probabilities(tensors: Tensors) -> dict[str, float]:
    pairs = zip(tensors["emotion_labels"], tensors["emotion_probabilities"], strict=True)
    return {decode(label): float(probability) for label, probability in pairs}


def _ranked(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Sort by probability, highest first, rounded to six decimals."""
    ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])
    return {label: round(probability, 6) for label, probability in ranked}


def _text(tensors: Tensors, name: str) -> str:
    return text_of(tensors[name])


def _number(tensors: Tensors, name: str) -> float:
    return float(tensors[name][0])
