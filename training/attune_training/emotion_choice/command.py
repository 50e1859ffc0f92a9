"""`attune train emotion-choice`: fit how VAD and the words' own meaning choose an emotion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from attune_training.config import DIMENSIONS, NEUTRAL_VAD
from attune_training.data.corpus import open_corpus
from attune_training.data.utterance import Utterance
from attune_training.edge import echo, plain_errors
from attune_training.emotion_choice.embedding import embed
from attune_training.emotion_choice.fitting import fit_exponents, fit_layer, log_loss, vad_error
from attune_training.emotion_choice.storage import VAD_ERROR, save_choice
from attune_training.emotion_map.anchors import read_anchors
from attune_training.emotion_map.storage import load_emotion_classifier
from attune_training.evaluation.command import predict_all
from attune_training.providers import combined

__all__ = ["emotion_choice_command", "fit_choice"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

_NEAR_NEUTRAL = 0.2
_MOST_AROUSED_NEUTRAL = 3.0
_UNSURE_SHARE = 0.25


@click.command()
@click.option("--model", type=_FOLDER, required=True, help="Trained valence/ and arousal_dominance/.")
@click.option("--emotion-map", type=_FOLDER, required=True, help="As `attune train emotion-map` wrote it.")
@click.option(
    "--texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Texts with their emotions, CSV: text, emotion, valence, arousal, dominance, writer, split (train or "
    "validation); such as training/attune_training/data/written.csv.",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the fitted choice."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
def emotion_choice_command(model: Path, emotion_map: Path, texts: Path, output: Path, threads: int | None) -> None:
    """Fit how VAD and the words' own meaning choose one of the emotions, on texts of these emotions."""
    with plain_errors(threads):
        click.echo(fit_choice(model, emotion_map, texts, output))


def fit_choice(model: Path, emotion_map: Path, texts: Path, output: Path) -> str:
    """Fit the choice on the training part of `texts`, its settings on the validation part; return what was found.

    Raises:
        ValueError: the texts or the model cannot be used.
    """
    anchors = read_anchors()
    utterances = open_corpus("written", texts).utterances
    train, validation = ([item for item in utterances if item.split == part] for part in ("train", "validation"))
    told, held_out = _with_emotion(train), _with_emotion(validation)
    echo(f"{len(told)} texts with an emotion, {len(held_out)} to choose settings by")
    right = [anchors.labels.index(item.category) for item in held_out]
    emotions = [anchors.labels.index(item.category) for item in told]
    embeddings = embed(_texts(held_out))
    neutral = embed(_texts([item for item in train if _is_neutral(item)]))
    layer = fit_layer(embed(_texts(told)), emotions, neutral, embeddings, right, len(anchors.labels))
    vad = _predict(model, held_out)
    error = vad_error(vad, anchors.vad[right])
    from_vad = _expected(emotion_map, error, vad)
    from_words = layer.probabilities(embeddings)
    exponents = fit_exponents(from_vad, from_words, right)
    joint = combined(from_vad, from_words, exponents.vad, exponents.words)
    record = {
        "labels": list(anchors.labels),
        "vad_exponent": exponents.vad,
        "words_exponent": exponents.words,
        "unsure_below": float(np.quantile(joint.max(axis=1), _UNSURE_SHARE)),
        VAD_ERROR: list(error),
        "penalty": layer.penalty,
        "texts": {"train": len(told), "neutral": len(neutral), "validation": len(held_out)},
        "validation": {
            name: _measured(table, right) for name, table in (("vad", from_vad), ("words", from_words), ("both", joint))
        },
    }
    save_choice(output, layer, record)
    lines = [f"{name}: {found}" for name, found in record["validation"].items()]  # type: ignore[attr-defined]
    return "\n".join([*lines, f"exponents: VAD {exponents.vad:.1f}, words {exponents.words:.1f}", f"error: {error}"])


def _with_emotion(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [item for item in utterances if item.category]


def _is_neutral(item: Utterance) -> bool:
    """Return whether a text was judged to be without feeling."""
    if item.category or np.isnan(item.vad()).any():
        return False
    near = max(abs(item.valence - NEUTRAL_VAD), abs(item.dominance - NEUTRAL_VAD)) <= _NEAR_NEUTRAL
    return near and item.arousal <= _MOST_AROUSED_NEUTRAL


def _texts(utterances: Sequence[Utterance]) -> list[str]:
    return [item.transcript for item in utterances]


def _predict(model: Path, utterances: Sequence[Utterance]) -> npt.NDArray[np.float32]:
    """Return VAD [N, 3] of the words alone."""
    predictions = predict_all(model, utterances, "words")
    return np.stack([predictions.column(name) for name in DIMENSIONS], axis=1)


@torch.inference_mode()
def _expected(
    emotion_map: Path, error: tuple[float, float, float], vad: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the classifier's probabilities [N, K], averaged over VAD's error."""
    points = torch.from_numpy(vad).float()
    _, _, expected = load_emotion_classifier(emotion_map, error)(points[:, :1], points[:, 1:])
    table: npt.NDArray[np.float32] = expected.numpy()
    return table


def _measured(table: npt.NDArray[np.float32], right: Sequence[int]) -> dict[str, float]:
    return {
        "right": float((table.argmax(axis=1) == np.asarray(right)).mean()),
        "log_loss": log_loss(table, right),
        "mean_probability": float(table.max(axis=1).mean()),
    }
