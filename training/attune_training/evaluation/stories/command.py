"""`attune evaluate stories` and `attune evaluate negations`: which emotions are heard in words alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.data.utterance import Utterance
from attune_training.edge import plain_errors
from attune_training.emotion_map.anchors import read_anchors
from attune_training.emotion_map.storage import load_emotion_classifier, load_emotion_map
from attune_training.evaluation.command import predict_all, shipped_model
from attune_training.evaluation.stories.measures import Answers, Array, measure, measure_negations, to_json
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
from attune_training.evaluation.stories.report import negations_markdown, stories_markdown

__all__ = ["answer", "negations", "predict_words", "shipped_emotion_map", "stories"]

SCORES_FILE, PICTURE_FILE, NEGATION_SCORES_FILE = "stories.json", "octants.png", "negations.json"

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_model_option = click.option(
    "--model",
    type=_FOLDER,
    default=shipped_model,
    help="A saved model of all dimensions, or a folder with valence/ and arousal_dominance/.  "
    "[default: the one that ships]",
)
_output_option = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for scores and answers (JSON, picture)."
)
_threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _data_option(columns: str) -> Any:
    return click.option(
        "--data",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"CSV: {columns}.  [default: the one that ships]",
    )


def shipped_emotion_map() -> Path:
    """Return the folder of the emotion map that ships."""
    return shipped_model().parent / "emotion_map"


@click.command()
@_model_option
@click.option("--emotion-map", type=_FOLDER, default=shipped_emotion_map, help="[default: the one that ships]")
@_data_option("id, text, emotion")
@_output_option
@_threads_option
@_json_option
def stories(
    model: Path, emotion_map: Path, data: Path | None, output: Path | None, threads: int | None, as_json: bool
) -> None:
    """Measure which of the emotions are heard in first-person stories, from their words alone."""
    with plain_errors(threads):
        anchors = read_anchors()
        told = read_stories(data or shipped_file(STORIES_FILE), anchors.labels)
        answers = answer(model, emotion_map, [story.text for story in told], anchors.labels)
        scores = measure(told, answers, anchors)
    record = to_json(scores)
    if output is not None:
        rows = _story_rows(told, answers, anchors.labels)
        _write(output / SCORES_FILE, record | {"stories": rows})
        draw_confusion(scores, output / PICTURE_FILE)
    click.echo(json.dumps(record) if as_json else stories_markdown(scores, len(anchors.labels)))


@click.command()
@_model_option
@_data_option("id, text, word, word_valence, valence, arousal")
@_output_option
@_threads_option
@_json_option
def negations(model: Path, data: Path | None, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Measure on which side of neutral sentences with a negation are heard, from their words alone."""
    with plain_errors(threads):
        sentences = read_negations(data or shipped_file(NEGATIONS_FILE))
        vad = predict_words(model, [sentence.text for sentence in sentences])
        scores = measure_negations(sentences, vad)
    record = to_json(scores)
    if output is not None:
        _write(output / NEGATION_SCORES_FILE, record | {"sentences": _negation_rows(sentences, vad)})
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


@torch.inference_mode()
def answer(model: Path, emotion_map: Path, texts: Sequence[str], labels: Sequence[str]) -> Answers:
    """Return what a saved model and an emotion map hear in the words of texts.

    Raises:
        ValueError: as `predict_words`, or the map has other emotions than `labels`.
        FileNotFoundError: the folder holds no emotion map.
        ProviderError: the towers' weights cannot be fetched.
    """
    if load_emotion_map(emotion_map).labels != tuple(labels):
        raise ValueError(f"{emotion_map}: its emotions are not those of the knowledge base; train the map again")
    classifier = load_emotion_classifier(emotion_map)
    vad = predict_words(model, texts)
    points = torch.from_numpy(vad).float()
    _, probabilities = classifier(points[:, :1], points[:, 1:])
    return Answers.most_probable(vad, probabilities.numpy())


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


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
