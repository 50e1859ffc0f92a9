"""`attune evaluate narrations`: by which rule the segments of a narration tell best what is felt about it all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import click
import numpy as np

from attune_training.config import SAMPLE_RATE
from attune_training.edge import plain_errors
from attune_training.emotion_map.anchors import Anchors, read_anchors
from attune_training.emotion_map.clusters import octants_of
from attune_training.evaluation.segments import MAX_SEGMENT_S
from attune_training.evaluation.stories.answering import Chooser, answer
from attune_training.evaluation.stories.command import predict_words
from attune_training.evaluation.stories.families import family_of
from attune_training.evaluation.stories.hearing import hear
from attune_training.evaluation.stories.measures import Answers, Array, Share
from attune_training.evaluation.stories.options import (
    choice_option,
    data_option,
    emotion_map_option,
    json_option,
    model_option,
    output_option,
    speech_option,
    threads_option,
    write_record,
)
from attune_training.evaluation.stories.reading import (
    NARRATIONS_FILE,
    Narration,
    read_narrations,
    shipped_file,
    words_of,
)
from attune_training.evaluation.stories.wholes import Course
from attune_training.providers import overall_rules, served_overall_rule, transcriber
from attune_training.synthesis.texts import Text, find_recordings, read_recordings

__all__ = ["NarrationScores", "measure_narrations", "narrations", "spoken_segments"]

SCORES_FILE = "narrations.json"
WORDS_PER_S = 2.5
"""Of speech that is told, to give written words a length."""

SEGMENT_WORDS = int(MAX_SEGMENT_S * WORDS_PER_S)


@dataclass(frozen=True, slots=True)
class NarrationScores:
    """How well the whole fits the overall emotion, on n narrations.

    `valence_side` asks about VAD, `octant`, `family` and `emotion` about the chosen emotion; `distance` is the mean
    distance of VAD from the anchor of the overall emotion.
    """

    valence_side: Share
    octant: Share
    family: Share
    emotion: Share
    distance: float


@click.command()
@model_option
@emotion_map_option
@choice_option
@data_option("id, part, text, emotion, overall")
@speech_option()
@output_option
@threads_option
@json_option
def narrations(
    model: Path,
    emotion_map: Path,
    choice: Path | None,
    data: Path | None,
    speech: Path | None,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the rules for the whole of a narration, from its words, or from recordings of it."""
    with plain_errors(threads):
        anchors = read_anchors()
        told = read_narrations(data or shipped_file(NARRATIONS_FILE), anchors.labels)
        courses = {"words alone": _read(model, told)} | (_heard(model, told, speech) if speech else {})
        scores = {
            name: {rule: _score(course, rule, told, Chooser(emotion_map, choice), anchors) for rule in overall_rules()}
            for name, course in courses.items()
        }
    record = {name: {rule: asdict(item) for rule, item in found.items()} for name, found in scores.items()}
    if output is not None:
        write_record(output / SCORES_FILE, {"served": served_overall_rule(), "scores": record})
    click.echo(json.dumps(record) if as_json else "\n\n".join(_table(*item, len(told)) for item in scores.items()))


def measure_narrations(told: Sequence[Narration], answers: Answers, anchors: Anchors) -> NarrationScores:
    """Compare what was heard in narrations as a whole with the emotion that they have on the whole."""
    true = np.array([anchors.labels.index(narration.overall) for narration in told])
    octants, families = np.array(octants_of(anchors.vad)), np.array([family_of(label) for label in anchors.labels])
    right, side = anchors.vad[true], octants_of(answers.vad)
    return NarrationScores(
        valence_side=Share.of([mine[0] == octants[label][0] for mine, label in zip(side, true, strict=True)]),
        octant=Share.of(octants[answers.chosen] == octants[true]),
        family=Share.of(families[answers.chosen] == families[true]),
        emotion=Share.of(answers.chosen == true),
        distance=float(np.linalg.norm(answers.vad - right, axis=1).mean()),
    )


def spoken_segments(text: str) -> list[str]:
    """Return the text cut at its punctuation, where pauses would be, into pieces of about 8 s at most.

    A piece without punctuation may be longer. What has no words is not told alone: it stays with what came before.
    """
    pieces = [""]
    for phrase in re.split(r"(?<=[.!?,;:])\s+", text.strip()):
        joined = f"{pieces[-1]} {phrase}".strip()
        if len(words_of(joined)) <= SEGMENT_WORDS or not words_of(phrase):
            pieces[-1] = joined
        else:
            pieces.append(phrase)
    return [piece for piece in pieces if piece]


def _read(model: Path, told: Sequence[Narration]) -> list[Course]:
    """Return what is heard in the words alone, cut as speech would be."""
    cut = [tuple(piece for part in narration.parts for piece in spoken_segments(part.text)) for narration in told]
    vad = np.split(predict_words(model, list(chain(*cut))), np.cumsum([len(pieces) for pieces in cut])[:-1])
    return [Course(rows, _lengths(pieces), pieces) for rows, pieces in zip(vad, cut, strict=True)]


def _lengths(texts: Sequence[str]) -> Array:
    """Return how long each would last, in samples at 16 kHz."""
    return np.array([len(words_of(text)) / WORDS_PER_S * SAMPLE_RATE for text in texts])


def _heard(model: Path, told: Sequence[Narration], speech: Path) -> dict[str, list[Course]]:
    texts = [Text(narration.id, narration.text) for narration in told]
    transcribe = transcriber()
    found: dict[str, list[Course]] = {}
    for voice, recordings in find_recordings(read_recordings(speech), texts).items():
        heard = hear(model, recordings, transcribe)
        found[f"{voice}, {heard.errors.rate:.1%} of the words wrong"] = list(heard.courses)
    return found


def _score(
    courses: Sequence[Course], rule: str, told: Sequence[Narration], chooser: Chooser, anchors: Anchors
) -> NarrationScores:
    answers = answer(chooser, [course.whole(rule) for course in courses], anchors.labels)
    return measure_narrations(told, answers, anchors)


def _table(name: str, scores: Mapping[str, NarrationScores], count: int) -> str:
    rows = [
        f"| {rule}{' (served)' if rule == served_overall_rule() else ''} | {item.valence_side.right} | "
        f"{item.octant.right} | {item.family.right} | {item.emotion.right} | {item.distance:.2f} |"
        for rule, item in scores.items()
    ]
    title = f"| {count} narrations, {name} | right valence side | octant | family | emotion | distance of VAD |"
    return "\n".join([title, "|---|---:|---:|---:|---:|---:|", *rows])
