"""`attune evaluate stories` and `attune evaluate negations`: which emotions are heard in words, and in speech."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.data.utterance import Utterance
from attune_training.edge import plain_errors
from attune_training.emotion_map.anchors import Anchors, read_anchors
from attune_training.evaluation.command import predict_all
from attune_training.evaluation.stories.answering import Chooser, answer
from attune_training.evaluation.stories.hearing import Heard, hear
from attune_training.evaluation.stories.measures import (
    Answers,
    Array,
    StoryScores,
    differences,
    main_measures,
    measure,
    measure_negations,
    to_json,
)
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
from attune_training.evaluation.stories.picture import draw_confusion
from attune_training.evaluation.stories.reading import (
    NEGATIONS_FILE,
    STORIES_FILE,
    Negation,
    Story,
    read_negations,
    read_stories,
    shipped_file,
)
from attune_training.evaluation.stories.report import (
    negations_markdown,
    rules_markdown,
    speech_markdown,
    stories_markdown,
)
from attune_training.evaluation.stories.wholes import wholes_of_texts
from attune_training.providers import overall_rules, served_overall_rule, transcriber
from attune_training.synthesis.texts import Recording, Text, find_recordings, read_recordings

__all__ = ["negations", "predict_words", "stories"]

SCORES_FILE, PICTURE_FILE, NEGATION_SCORES_FILE = "stories.json", "octants.png", "negations.json"


@click.command()
@model_option
@emotion_map_option
@choice_option
@data_option("id, text, emotion")
@speech_option()
@output_option
@threads_option
@json_option
def stories(
    model: Path,
    emotion_map: Path,
    choice: Path | None,
    data: Path | None,
    speech: Path | None,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure which of the emotions are heard in first-person stories: from their words alone, and from speech."""
    with plain_errors(threads):
        anchors = read_anchors()
        told = read_stories(data or shipped_file(STORIES_FILE), anchors.labels)
        spoken = _recordings(speech, told)
        texts = [story.text for story in told]
        chooser = Chooser(emotion_map, choice)
        answers = answer(chooser, wholes_of_texts(predict_words(model, texts), texts), anchors.labels)
        scores = measure(told, answers, anchors)
        voices = [_hear(name, items, model, chooser, told, anchors) for name, items in spoken.items()]
    record = to_json(scores) | {"speech": {voice.name: _voice_record(voice, scores) for voice in voices}}
    if output is not None:
        rows = _story_rows(told, answers, anchors.labels)
        heard = {voice.name: _heard_rows(told, voice, anchors.labels) for voice in voices}
        write_record(output / SCORES_FILE, record | {"stories": rows, "heard": heard})
        draw_confusion(scores, output / PICTURE_FILE)
    if as_json:
        click.echo(json.dumps(record))
        return
    click.echo(stories_markdown(scores, len(anchors.labels)))
    if voices:
        errors = {voice.name: voice.heard.errors for voice in voices}
        click.echo("\n" + speech_markdown(scores, {voice.name: voice.scores for voice in voices}, errors))
        click.echo("\n" + rules_markdown({voice.name: voice.by_rule for voice in voices}, served_overall_rule()))


@dataclass(frozen=True, slots=True)
class _Voice:
    """What was heard in the recordings of a voice: `answers` by the served rule for the whole, scores by each rule."""

    name: str
    heard: Heard
    answers: Answers
    by_rule: dict[str, StoryScores]

    @property
    def scores(self) -> StoryScores:
        """By the served rule."""
        return self.by_rule[served_overall_rule()]


def _recordings(speech: Path | None, told: Sequence[Story]) -> dict[str, list[Recording]]:
    if speech is None:
        return {}
    return find_recordings(read_recordings(speech), [Text(story.id, story.text) for story in told])


def _hear(
    name: str,
    recordings: Sequence[Recording],
    model: Path,
    chooser: Chooser,
    told: Sequence[Story],
    anchors: Anchors,
) -> _Voice:
    heard = hear(model, recordings, transcriber())
    answers = {rule: answer(chooser, heard.wholes(rule), anchors.labels) for rule in overall_rules()}
    by_rule = {rule: measure(told, found, anchors) for rule, found in answers.items()}
    return _Voice(name, heard, answers[served_overall_rule()], by_rule)


@click.command()
@model_option
@data_option("id, text, word, word_valence, valence, arousal")
@output_option
@threads_option
@json_option
def negations(model: Path, data: Path | None, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Measure on which side of neutral sentences with a negation are heard, from their words alone."""
    with plain_errors(threads):
        sentences = read_negations(data or shipped_file(NEGATIONS_FILE))
        vad = predict_words(model, [sentence.text for sentence in sentences])
        scores = measure_negations(sentences, vad)
    record = to_json(scores)
    if output is not None:
        write_record(output / NEGATION_SCORES_FILE, record | {"sentences": _negation_rows(sentences, vad)})
    click.echo(json.dumps(record) if as_json else negations_markdown(scores))


def predict_words(model: Path, texts: Sequence[str]) -> Array:
    """Return the VAD [n, 3] on 1..5 that a saved model hears in texts, the voice masked.

    Raises:
        ValueError: the folder holds no model that this project saved, or one that lacks a dimension.
        ProviderError: the towers' weights cannot be fetched.
    """
    unknown = NEUTRAL_VAD  # the labels, which nothing here reads
    utterances = [Utterance(None, text, unknown, unknown, unknown, speaker="") for text in texts]
    predictions = predict_all(model, utterances, "words")
    missing = [name for name in DIMENSIONS if name not in predictions.names]
    if missing:
        raise ValueError(f"{model} does not predict {', '.join(missing)}: a model of all three dimensions is needed")
    return np.stack([predictions.column(name) for name in DIMENSIONS], axis=1).astype(np.float64)


def _voice_record(voice: _Voice, text: StoryScores) -> dict[str, Any]:
    errors = voice.heard.errors
    return {
        "words_wrong": asdict(errors) | {"rate": errors.rate},
        "scores": to_json(voice.scores),
        "difference": differences(text, voice.scores),
        "by_rule": {rule: main_measures(scores) for rule, scores in voice.by_rule.items()},
    }


def _heard_rows(told: Sequence[Story], voice: _Voice, labels: Sequence[str]) -> list[dict[str, Any]]:
    rows = _story_rows(told, voice.answers, labels)
    return [row | {"words": words} for row, words in zip(rows, voice.heard.transcripts, strict=True)]


def _story_rows(told: Sequence[Story], answers: Answers, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": story.id,
            "emotion": story.emotion,
            "heard": labels[chosen],
            "probability": float(probabilities[chosen]),
            **_named(vad),
        }
        for story, chosen, probabilities, vad in zip(
            told, answers.chosen, answers.probabilities, answers.vad, strict=True
        )
    ]


def _negation_rows(sentences: Sequence[Negation], vad: Array) -> list[dict[str, Any]]:
    return [
        {"id": sentence.id, "text": sentence.text, "right_valence": sentence.valence, **_named(row)}
        for sentence, row in zip(sentences, vad, strict=True)
    ]


def _named(vad: Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(DIMENSIONS, vad, strict=True)}
