"""What is heard in recordings of texts: found, recognised and predicted as it is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.data.utterance import Utterance
from attune_training.evaluation.command import predict_all_segments, progress_bar
from attune_training.evaluation.segments import recognised_segments
from attune_training.evaluation.stories.wholes import Course, Whole
from attune_training.evaluation.words import WordErrors, word_errors
from attune_training.providers import Transcribe
from attune_training.synthesis.texts import Recording

__all__ = ["Heard", "as_utterances", "hear"]


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard in n recordings, and how many of their words were wrong."""

    courses: tuple[Course, ...]
    errors: WordErrors

    @property
    def transcripts(self) -> tuple[str, ...]:
        """The words of each recording."""
        return tuple(map(_transcript, self.courses))

    def wholes(self, rule: str | None = None) -> list[Whole]:
        """Return the recordings as a whole, by the served rule unless another is named."""
        return [course.whole(rule) for course in self.courses]


def hear(model: Path, recordings: Sequence[Recording], transcribe: Transcribe) -> Heard:
    """Return what a saved model hears from voice and recognised words, segment by segment.

    Raises:
        ValueError: a recording cannot be read, or the folder holds no model of all three dimensions.
        ProviderError: no segmenter is installed, or the towers' weights cannot be fetched.
    """
    utterances = as_utterances(recordings)
    with progress_bar("recognising speech", len(utterances)) as advance:
        segments = recognised_segments(utterances, transcribe, advance)
    found = predict_all_segments(model, utterances, "both", segments)
    words = [tuple(item.transcript for item in cut) for cut in segments]
    courses = tuple(map(Course, found.columns(DIMENSIONS), found.lengths, words))
    errors = word_errors([recording.text for recording in recordings], [_transcript(course) for course in courses])
    return Heard(courses, errors)


def as_utterances(recordings: Sequence[Recording]) -> list[Utterance]:
    """Return the recordings as utterances, with labels that nothing reads."""
    unknown = (NEUTRAL_VAD,) * 3
    return [Utterance(item.path, item.text, *unknown, speaker=item.voice) for item in recordings]


def _transcript(course: Course) -> str:
    return " ".join(filter(None, course.texts))
