"""`attune evaluate transcription`: which words settings of decoding get wrong, what that costs, and their price.

What is lost is measured on words alone: valence as it is predicted from the words that were read, against valence from
the words that were recognised, each compared with the anchors of the stories' emotions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from attune_training.config import DIMENSIONS, SAMPLE_RATE
from attune_training.data.audio import read_speech
from attune_training.edge import plain_errors
from attune_training.emotion_map.anchors import Anchors, read_anchors
from attune_training.evaluation.command import progress_bar
from attune_training.evaluation.stories.command import predict_words
from attune_training.evaluation.stories.measures import Array
from attune_training.evaluation.stories.options import (
    data_option,
    json_option,
    model_option,
    output_option,
    speech_option,
    threads_option,
    write_record,
)
from attune_training.evaluation.stories.reading import STORIES_FILE, Story, read_stories, shipped_file
from attune_training.evaluation.words import WordErrors, word_errors
from attune_training.metrics import agreement
from attune_training.providers import Transcribe, transcriber
from attune_training.synthesis.texts import Recording, Text, find_recordings, read_recordings

__all__ = ["SETTINGS", "Trial", "spread_out", "transcription"]

SCORES_FILE = "transcription.json"

PROMPT = "Well, let me tell you what happened today, and how I felt about it."
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)  # Whisper's own

SETTINGS: dict[str, dict[str, Any]] = {
    "beam-1": {},
    "beam-5": {"beam_size": 5},
    "prompt": {"prompt": PROMPT},
    "fallback": {"fallback": TEMPERATURES},
    "previous": {"condition_on_previous": True},
    "all": {"beam_size": 5, "prompt": PROMPT, "fallback": TEMPERATURES, "condition_on_previous": True},
}
"""What each changes of the decoding that the profile `embedded` serves, which is the first."""

_VALENCE = DIMENSIONS.index("valence")


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting on one voice's recordings.

    `given_pcc` and `recognised_pcc` are those of predicted valence with the anchors, from the words that were read and
    from those recognised; `agreement` is the PCC between the two predictions. `cpu_s_per_s` is processor time, of all
    threads together, for a second of recording.
    """

    errors: WordErrors
    given_pcc: float
    recognised_pcc: float
    agreement: float
    cpu_s_per_s: float
    transcripts: tuple[str, ...]

    @property
    def lost(self) -> float:
        """How much of valence's PCC the wrong words cost."""
        return self.given_pcc - self.recognised_pcc


@click.command()
@model_option
@data_option("id, text, emotion")
@speech_option(required=True)
@click.option(
    "--setting", "settings", type=click.Choice(list(SETTINGS)), multiple=True, help="May be repeated.  [default: all]"
)
@click.option("--limit", type=click.IntRange(min=2), help="How many stories, spread over the file.  [default: all]")
@output_option
@threads_option
@json_option
def transcription(
    model: Path,
    data: Path | None,
    speech: Path,
    settings: tuple[str, ...],
    limit: int | None,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare settings of speech recognition: words wrong, valence lost, and processor time."""
    with plain_errors(threads):
        anchors = read_anchors()
        told = spread_out(read_stories(data or shipped_file(STORIES_FILE), anchors.labels), limit)
        texts = [Text(story.id, story.text) for story in told]
        given = predict_words(model, [story.text for story in told])[:, _VALENCE]
        true = _true_valence(told, anchors)
        recordings = find_recordings(read_recordings(speech), texts)
        trials = {
            voice: {name: _try(name, items, model, given, true) for name in settings or SETTINGS}
            for voice, items in recordings.items()
        }
    record = {voice: {name: _record(trial) for name, trial in found.items()} for voice, found in trials.items()}
    if output is not None:
        write_record(
            output / SCORES_FILE, {"stories": [story.id for story in told], "settings": SETTINGS, "voices": record}
        )
    click.echo(json.dumps(record) if as_json else "\n\n".join(_table(*item, len(told)) for item in trials.items()))


def spread_out(stories: Sequence[Story], limit: int | None) -> list[Story]:
    """Return `limit` stories at equal distances, since neighbours have the same emotion; all of them without one."""
    if limit is None or limit >= len(stories):
        return list(stories)
    return [stories[index] for index in np.linspace(0, len(stories) - 1, limit).round().astype(int)]


def _true_valence(told: Sequence[Story], anchors: Anchors) -> Array:
    rows = [anchors.labels.index(story.emotion) for story in told]
    valence: Array = anchors.vad[rows, _VALENCE]
    return valence


def _try(name: str, recordings: Sequence[Recording], model: Path, given: Array, true: Array) -> Trial:
    transcribe = transcriber(**SETTINGS[name])
    with progress_bar(f"{recordings[0].voice}, {name}", len(recordings)) as advance:
        transcripts, cost = _transcribe_all(recordings, transcribe, advance)
    recognised = predict_words(model, transcripts)[:, _VALENCE]
    return Trial(
        errors=word_errors([recording.text for recording in recordings], transcripts),
        given_pcc=agreement(given, true).pcc,
        recognised_pcc=agreement(recognised, true).pcc,
        agreement=agreement(recognised, given).pcc,
        cpu_s_per_s=cost,
        transcripts=tuple(transcripts),
    )


def _transcribe_all(
    recordings: Sequence[Recording], transcribe: Transcribe, progress: Callable[[], None]
) -> tuple[list[str], float]:
    """Return the transcripts, and seconds of processor time for a second of recording."""
    transcripts, spent_s, long_s = [], 0.0, 0.0
    for recording in recordings:
        waveform = read_speech(recording.path)
        started_s = time.process_time()
        segments = transcribe(waveform)
        spent_s += time.process_time() - started_s
        long_s += len(waveform) / SAMPLE_RATE
        transcripts.append(" ".join(item.transcript for item in segments if item.transcript))
        progress()
    return transcripts, spent_s / long_s


def _record(trial: Trial) -> dict[str, Any]:
    return asdict(trial) | {"rate": trial.errors.rate, "lost": trial.lost}


def _table(voice: str, trials: Mapping[str, Trial], count: int) -> str:
    lines = [
        f"| {count} stories, {voice} | words wrong | replaced, left out, put in | valence, PCC: given, recognised "
        "| lost | PCC of the two | CPU s per s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, trial in trials.items():
        errors = trial.errors
        lines.append(
            f"| {name} | {errors.rate:.1%} | {errors.substitutions}, {errors.deletions}, {errors.insertions} "
            f"| {trial.given_pcc:.3f}, {trial.recognised_pcc:.3f} | {trial.lost:+.3f} | {trial.agreement:.3f} "
            f"| {trial.cpu_s_per_s:.3f} |"
        )
    return "\n".join(lines)
