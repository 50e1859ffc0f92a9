"""Evaluation: worked numbers, pairs that a person would try, and the command on a miniature.

.venv/bin/pytest tests/unit/test_training_evaluation.py
ATTUNE_DATA=DIR .venv/bin/pytest tests/unit/test_training_evaluation.py    (with ravdess/ in DIR)
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from attune_training import providers
from attune_training.checkpoints import save_model
from attune_training.commands import evaluate
from attune_training.config import TARGET_NAMES
from attune_training.data.corpus import open_corpus
from attune_training.data.splits import parse_split_policy
from attune_training.data.utterance import Utterance
from attune_training.evaluation.command import predict_all, shipped_model
from attune_training.evaluation.pairs import (
    PairCheck,
    category_pairs,
    check_pairs,
    parse_pair_check,
    quintile_pairs,
)
from attune_training.evaluation.predictions import Predictions
from attune_training.evaluation.report import markdown, score
from attune_training.pretrained import build
from tests.miniature import write_manifest

SPOKEN = Path(__file__).parents[1] / "data" / "spoken"


def utterance(words="hello", speaker="x", category="", valence=3.0):
    return Utterance(None, words, valence, 3.0, 3.0, speaker, category=category)


def predictions(predicted, target, names=("arousal",), utterances=None):
    rows = tuple(utterances or [utterance() for _ in predicted])
    columns = (np.array(values, np.float32).reshape(len(rows), -1) for values in (predicted, target))
    return Predictions(names, rows, *columns)


# Scores


def test_scores_on_worked_numbers():
    # Errors 0, 0.5, -2, 0: Huber 0, .125, 1.5, 0, their mean .40625; squares 0, .25, 4, 0, their mean 1.0625.
    arousal = score(predictions([1.0, 2.5, 1.0, 4.0], [1.0, 2.0, 3.0, 4.0])).dimensions["arousal"]
    assert arousal.loss == pytest.approx(0.40625)
    assert arousal.rmse == pytest.approx(1.0625**0.5)
    assert arousal.count == 4
    # deviations multiply to 1.6875, -.1875, -.5625, 2.8125: covariance .9375, variances 1.546875, 1.25.
    assert arousal.pcc == pytest.approx(0.9375 / (1.546875 * 1.25) ** 0.5, rel=1e-5)
    assert arousal.ccc == pytest.approx(2 * 0.9375 / (1.546875 + 1.25 + 0.375**2), rel=1e-5)


def test_valence_is_scored_by_its_squared_error():
    valence = score(predictions([1.0, 2.5, 1.0, 4.0], [1.0, 2.0, 3.0, 4.0], ("valence",))).dimensions["valence"]
    assert valence.loss == pytest.approx(1.0625)


def test_intervals_hold_the_value_and_narrow_with_more_utterances():
    random = np.random.default_rng(0)
    widths = []
    for count in (50, 1000):
        target = random.uniform(1, 5, count)
        item = score(predictions(target + random.normal(size=count), target)).dimensions["arousal"]
        assert item.pcc_interval.low < item.pcc < item.pcc_interval.high
        assert item.ccc_interval.low < item.ccc < item.ccc_interval.high
        assert item.rmse_interval.low < item.rmse < item.rmse_interval.high
        widths.append(item.pcc_interval.high - item.pcc_interval.low)
    assert widths[1] < widths[0] / 2


def test_speakers_are_scored_apart():
    rows = [utterance(speaker=speaker) for speaker in "aaabbb"]
    scores = score(predictions([1, 2, 3, 3, 2, 1], [1, 2, 3, 1, 2, 3], utterances=rows))
    assert scores.speakers["a"]["arousal"].pcc == pytest.approx(1.0)
    assert scores.speakers["b"]["arousal"].pcc == pytest.approx(-1.0)
    assert "| b | 3 | -1.000 / -1.000 / 1.633 |" in markdown(scores)


# Pairs


def test_pairs_share_speaker_and_words():
    rows = [
        utterance("a", "x", "angry"),
        utterance("a", "x", "calm"),
        utterance("a", "y", "calm"),
        utterance("b", "x", "calm"),
        utterance("a", "x", "angry"),
    ]
    assert category_pairs(rows, "angry", "calm") == [(0, 1), (4, 1)]
    result = check_pairs(predictions([4, 3, 5, 5, 2], [3] * 5, utterances=rows), PairCheck("arousal", "angry", "calm"))
    assert (result.pairs, result.right, result.share) == (2, 1, 0.5)


def test_quintile_pairs_are_of_one_voice_and_use_no_sentence_twice():
    rows = [utterance(speaker="xy"[index % 2], valence=1 + 4 * index / 99) for index in range(100)]
    pairs = quintile_pairs(rows, "valence", count=15)
    assert len(pairs) == 15
    assert len({index for pair in pairs for index in pair}) == 30
    for high, low in pairs:
        assert rows[high].speaker == rows[low].speaker
        assert rows[high].valence >= 4.2
        assert rows[low].valence <= 1.8


def test_a_check_is_read_or_refused():
    assert parse_pair_check("arousal:angry/calm") == PairCheck("arousal", "angry", "calm")
    assert parse_pair_check("valence:quintiles") == PairCheck("valence")
    for text in ("arousal", "power:a/b", "arousal:angry", ""):
        with pytest.raises(ValueError, match="arousal:angry/calm"):
            parse_pair_check(text)


def test_a_check_that_finds_no_pair_says_so():
    with pytest.raises(ValueError, match="no pair"):
        check_pairs(predictions([1, 2], [1, 2]), PairCheck("arousal", "angry", "calm"))
    with pytest.raises(ValueError, match="predicts arousal, not valence"):
        check_pairs(predictions([1, 2], [1, 2]), PairCheck("valence"))


# The command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for target in ("valence", "arousal_dominance"):
        save_model(build("tiny", "cross-modal-separate", target, None).model, folder / target)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("mini"))


def run(*arguments):
    result = CliRunner().invoke(evaluate, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_measures_a_part_with_every_choice_of_inputs(models, manifest):
    choices = [item for choice in ("both", "voice", "words") for item in ("--inputs", choice)]
    measured = json.loads(run("--model", models, "--data", manifest, "--split", "given", *choices, "--json"))
    assert [item["inputs"] for item in measured] == ["both", "voice", "words"]
    for item in measured:
        assert list(item["dimensions"]) == list(TARGET_NAMES["valence"] + TARGET_NAMES["arousal_dominance"])
        assert item["dimensions"]["valence"]["count"] == 10
        assert list(item["speakers"]) == ["voice-4"]
    losses = {item["dimensions"]["valence"]["loss"] for item in measured}
    assert len(losses) == 3, "each stream changes the answer"


def test_the_command_prints_tables_and_pairs(models, manifest):
    text = run("--model", models / "valence", "--data", f"manifest={manifest}", "--pairs", "valence:quintiles")
    assert "| valence |" in text
    assert "| voice-0 | 10 |" in text
    assert "pairs right" in text


def test_recognised_words_take_the_place_of_the_corpus_s(models, manifest, monkeypatch):
    heard = []

    def transcribe(waveform):
        heard.append(len(waveform))
        return "good joy"

    monkeypatch.setattr("attune_training.evaluation.command.transcriber", lambda: transcribe)
    arguments = ("--model", models / "valence", "--data", manifest, "--json")
    given, recognised = (json.loads(run(*arguments, "--transcripts", kind))[0] for kind in ("given", "recognised"))
    assert len(heard) == 50
    assert given["dimensions"]["valence"]["loss"] != recognised["dimensions"]["valence"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing.csv"), "nothing.csv"),
        (("--data", "corpus=x"), "is no kind of corpus"),
        (("--data", "x.csv", "--pairs", "arousal"), "is no check of pairs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(models, arguments, message):
    result = CliRunner().invoke(evaluate, ["--model", str(models), *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_words_that_nothing_provides_are_explained(monkeypatch):
    monkeypatch.setattr(providers, "entry_points", lambda **_: [])
    with pytest.raises(providers.ProviderError, match="install the extras train and serve"):
        providers.weights("whisper-base-ct2")


# What the shipped models make of sentences that a person would try


@pytest.fixture(scope="module")
def spoken():
    with (SPOKEN / "sentences.csv").open(newline="") as file:
        return [
            Utterance(SPOKEN / row["path"], row["transcript"], 3.0, 3.0, 3.0, "one voice", category=row["mood"])
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("inputs", ["both", "words"])
def test_happy_words_lie_above_sad_ones_in_one_flat_voice(spoken, inputs):
    valence = predict_all(shipped_model(), spoken, inputs).column("valence")
    moods = np.array([item.category for item in spoken])
    right = valence[moods == "happy"][:, None] > valence[moods == "sad"][None, :]
    assert right.mean() >= 0.85


def test_anger_lies_above_calm_in_the_voice_of_a_held_out_actor():
    folder = Path(os.environ.get("ATTUNE_DATA", "")) / "ravdess"
    if not os.environ.get("ATTUNE_DATA") or not folder.is_dir():
        pytest.skip("ATTUNE_DATA names no folder with ravdess/ in it")
    corpus = open_corpus("ravdess", folder)
    test = parse_split_policy("held-out-speakers:17-20/24").split(corpus.utterances, "valence", 0).test
    chosen = [item for item in test if item.category in ("angry", "calm")]
    result = check_pairs(predict_all(shipped_model(), chosen, "both"), PairCheck("arousal", "angry", "calm"))
    assert result.pairs == 32
    assert result.share >= 0.9
