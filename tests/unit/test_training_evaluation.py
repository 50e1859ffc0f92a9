"""Evaluation: worked numbers, pairwise order checks, and the command on a miniature.

.venv/bin/pytest tests/unit/test_training_evaluation.py
ATTUNE_DATA=DIR .venv/bin/pytest tests/unit/test_training_evaluation.py    (with ravdess/ in DIR)
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from attune_client.bench import report
from attune_ensemble.prompting.knowledge import OCTANTS, load_emotions
from attune_ensemble.speech.overall import overall_vad
from attune_ensemble.speech.transcription import find_speech
from attune_training import providers
from attune_training.commands import evaluate
from attune_training.config import DIMENSIONS, TARGET_NAMES
from attune_training.data.audio import read_speech
from attune_training.data.batches import Collator, TextTokens
from attune_training.data.corpus import open_corpus
from attune_training.data.splits import parse_split_policy
from attune_training.data.utterance import Utterance
from attune_training.evaluation.categories import tell_categories
from attune_training.evaluation.command import predict_all, shipped_model
from attune_training.evaluation.pairs import (
    PairCheck,
    category_pairs,
    check_pairs,
    parse_pair_check,
    quintile_pairs,
)
from attune_training.evaluation.predictions import Predictions, predict
from attune_training.evaluation.report import markdown, score
from attune_training.evaluation.segments import Segment, distribute_words, given_segments, recognised_segments
from attune_training.machine import hardware_line
from attune_training.models.checkpoints import save_model
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


def test_dimensions_are_scored_on_their_labels_and_left_out_without():
    nan = float("nan")
    rows = [utterance(speaker="ann") for _ in range(4)]
    target = [[1, 2, nan], [2, nan, nan], [3, 3, 3], [5, 4, nan]]
    whole = predictions([[1, 1, 1], [2, 9, 2], [3, 2, 3], [4, 3, 4]], target, ("valence", "arousal", "dominance"), rows)
    scores = score(whole)
    assert {name: item.count for name, item in scores.dimensions.items()} == {"valence": 4, "arousal": 3}
    assert scores.dimensions["arousal"].pcc == pytest.approx(1.0)
    assert scores.dimensions["arousal"].loss == pytest.approx(0.5)
    assert set(scores.speakers["ann"]) == {"valence", "arousal"}
    assert "nan" not in markdown(scores)
    with pytest.raises(ValueError, match="labels of arousal are needed"):
        score(predictions([1, 2], [nan, nan]))


def test_speakers_without_enough_labels_of_a_dimension_are_said_so():
    nan = float("nan")
    rows = [utterance(speaker=name) for name in "aaabbb"]
    target = [[1, 1], [2, 2], [3, 3], [1, nan], [2, nan], [3, 2]]
    scores = score(predictions(target[:3] * 2, target, ("valence", "arousal"), rows))
    assert "| b | 3 | 1.000 / 1.000 / 0.000 | no labels |" in markdown(scores)


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


# Recordings as they are served: cut at pauses, and the whole by the served rule


class Loudness(torch.nn.Module):
    """A model with two outputs: the value of the longest constant span, and the number of tokens."""

    class Config:
        output_names = ("arousal", "dominance")

    config = Config()

    def forward(self, waveform, num_samples, input_ids, attention_mask, audio_present):
        loudness = waveform.sum(dim=1, keepdim=True) / num_samples
        return torch.cat([loudness, attention_mask.sum(dim=1, keepdim=True).float()], dim=1)


def collator():
    return Collator(TextTokens.of_letters(), "arousal_dominance", 8.0)


def recording(folder, *stretches):
    """Write stretches of (seconds, value) one after the other."""
    parts = [np.full(round(seconds * 16_000), value, np.float32) for seconds, value in stretches]
    soundfile.write(folder / "long.wav", np.concatenate(parts), 16_000, subtype="FLOAT")
    return Utterance(folder / "long.wav", "a b c d e f g h i j", 3.0, 3.0, 3.0, "x")


@pytest.fixture
def speech_is_what_is_loud(monkeypatch):
    """In place of the served finding of speech: stretches of one value above zero."""

    def find(waveform):
        loud = np.flatnonzero(np.diff(np.concatenate([[0], waveform])))
        edges = [*loud.tolist(), len(waveform)]
        return [(start, end) for start, end in pairwise(edges) if waveform[start] > 0]

    monkeypatch.setattr("attune_training.evaluation.segments.segmenter", lambda: find)


def test_a_long_recording_is_evaluated_to_its_end(tmp_path, speech_is_what_is_loud):
    """The 8 s at its start would say 0.2. A model of some dimensions averages by length."""
    item = recording(tmp_path, (6.0, 0.2), (4.0, 0.0), (2.0, 0.6))
    found = predict(Loudness(), [item, item], collator())
    assert found.column("arousal") == pytest.approx([(6 * 0.2 + 2 * 0.6) / 8] * 2, abs=1e-4)


class AllLoudness(Loudness):
    """A model of all three dimensions, each the same."""

    class Config:
        output_names = ("valence", "arousal", "dominance")

    config = Config()

    def forward(self, waveform, num_samples, input_ids, attention_mask, audio_present):
        return super().forward(waveform, num_samples, input_ids, attention_mask, audio_present)[:, [0, 0, 0]]


def test_the_whole_is_that_of_the_served_rule(tmp_path, speech_is_what_is_loud):
    stretches = ((3.0, 0.1), (1.0, 0.0), (5.0, 0.7), (1.0, 0.0), (7.5, 0.4))
    found = predict(AllLoudness(), [recording(tmp_path, *stretches)], collator())
    loud = [(seconds, value) for seconds, value in stretches if value]
    vad = np.array([[value] * 3 for _, value in loud], np.float32)
    served = overall_vad(vad, [round(seconds * 16_000) for seconds, _ in loud])
    assert found.column("arousal") == pytest.approx(served[1:2], abs=1e-4)
    assert abs(served[1] - np.average(vad[:, 1], weights=[seconds for seconds, _ in loud])) > 1e-3


def test_words_that_are_given_go_to_the_segments_in_order(tmp_path, speech_is_what_is_loud):
    item = recording(tmp_path, (6.0, 0.2), (4.0, 0.0), (2.0, 0.6))
    [segments] = given_segments([item])
    assert [(segment.start, segment.end) for segment in segments] == [(0, 96_000), (160_000, 192_000)]
    # Three quarters of the time; the eighth word's middle is at .75 of all words, the edge of the second segment.
    assert [segment.transcript for segment in segments] == ["a b c d e f g", "h i j"]
    # With [CLS] and [SEP]: 9 tokens for 6 s and 5 for 2 s.
    assert predict(Loudness(), [item], collator()).column("dominance") == pytest.approx([(6 * 9 + 2 * 5) / 8])
    assert predict(Loudness(), [item], collator(), inputs="voice").column("dominance") == pytest.approx([2])
    assert predict(Loudness(), [item], collator(), inputs="words").column("dominance") == pytest.approx([12])


@pytest.mark.parametrize(
    ("transcript", "lengths", "expected"),
    [
        ("one two", [5], ["one two"]),
        ("  spaces  stay ", [5], ["  spaces  stay "]),
        ("", [1, 1], ["", ""]),
        ("a", [1, 3], ["", "a"]),
        ("a b c d", [1, 1, 2], ["a", "b", "c d"]),
    ],
)
def test_words_are_distributed_by_length_and_none_is_lost(transcript, lengths, expected):
    assert distribute_words(transcript, lengths) == expected


def test_where_no_speech_is_found_the_audio_is_cut_into_equal_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("attune_training.evaluation.segments.segmenter", lambda: lambda waveform: [])
    [segments] = given_segments([recording(tmp_path, (5.0, 0.0), (20.0, 0.3), (5.0, 0.0))])
    lengths = [segment.end - segment.start for segment in segments]
    assert len(lengths) == 3
    assert max(lengths) <= 8 * 16_000
    assert (segments[0].start, segments[-1].end) == (int(4.9 * 16_000), int(25.1 * 16_000))


def test_recognised_segments_are_the_recognisers_own(tmp_path, speech_is_what_is_loud):
    item = recording(tmp_path, (6.0, 0.2), (4.0, 0.0), (2.0, 0.6))
    heard = [providers.RecognisedSegment(0, 10, "well"), providers.RecognisedSegment(20, 40, "hello there")]
    assert recognised_segments([item], lambda waveform: heard) == [
        (Segment(0, 10, "well"), Segment(20, 40, "hello there"))
    ]
    [wordless] = recognised_segments([item], lambda waveform: [])
    assert [(segment.start, segment.transcript) for segment in wordless] == [(0, ""), (160_000, "")]


def test_the_finding_of_speech_is_the_served_one(samples):
    waveform = read_speech(samples[0])
    assert providers.segmenter()(waveform) == [(span.start, span.end) for span in find_speech(waveform)] != []


def test_training_checks_before_it_starts_that_it_can_be_evaluated(monkeypatch):
    def find(waveform):
        raise ImportError("No module named 'faster_whisper'")

    monkeypatch.setattr(providers, "_module", lambda name: SimpleNamespace(find_speech=find))
    with pytest.raises(providers.ProviderError, match=r"finding speech needs more .*install"):
        providers.segmenter()


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
        return [providers.RecognisedSegment(0, len(waveform), "good joy")]

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
def test_an_error_is_reported_in_one_line(models, arguments, message):
    result = CliRunner().invoke(evaluate, ["--model", str(models), *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_words_that_nothing_provides_are_explained(monkeypatch):
    monkeypatch.setattr(providers, "entry_points", lambda **_: [])
    providers._module.cache_clear()
    with pytest.raises(providers.ProviderError, match="install the extra train"):
        providers.transcriber()


def test_octants_anchors_and_the_machine_are_those_of_the_others():
    assert providers.anchors() == {emotion.label: emotion.anchor for emotion in load_emotions()}
    assert {providers.octant_of(emotion.anchor) for emotion in load_emotions()} == set(OCTANTS)
    assert hardware_line("cpu").startswith(report.hardware_line().removeprefix("hardware: "))


def test_every_provider_that_is_declared_is_one_that_training_uses():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    used = set(re.findall(r'_module\("(\w+)"\)', Path(providers.__file__).read_text()))
    assert set(declared[providers.GROUP]) == used
    assert all(importlib.import_module(module) for module in declared[providers.GROUP].values())


# The packaged models on sentences of clear emotion


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


def acted(category, agreement=None):
    return Utterance(None, "words", 3.0, 3.0, 3.0, "actor", category=category, agreement=agreement)


def test_categories_are_told_by_the_nearest_anchor():
    utterances = (acted("angry", 0.8), acted("sad", 0.4), acted("sad", 0.6), acted("neutral", 1.0))
    predicted = np.array([[1.8, 4.1, 3.9], [1.8, 2.3, 2.3], [2.9, 2.6, 3.1], [3.1, 2.4, 3.0]], np.float32)
    result = tell_categories(Predictions(DIMENSIONS, utterances, predicted, predicted))
    assert (result.right, result.count, result.share) == (3, 4, 0.75)
    assert result.recall == {"angry": 1.0, "neutral": 1.0, "sad": 0.5}
    assert result.listeners == pytest.approx(0.7)


def test_categories_without_an_anchor_or_of_half_a_model_are_refused():
    predicted = np.full((1, 3), 3.0, np.float32)
    with pytest.raises(ValueError, match="'bored': the categories with an anchor are neutral, calm"):
        tell_categories(Predictions(DIMENSIONS, (acted("bored"),), predicted, predicted))
    with pytest.raises(ValueError, match="arousal, dominance lacks"):
        tell_categories(Predictions(("valence",), (acted("sad"),), predicted[:, :1], predicted[:, :1]))


def test_the_spread_is_that_of_predictions_over_labels():
    predicted, target = np.array([[2.0], [3.0], [4.0]], np.float32), np.array([[1.0], [3.0], [5.0]], np.float32)
    found = score(Predictions(("valence",), (acted("sad"),) * 3, predicted, target))
    assert found.dimensions["valence"].spread == pytest.approx(0.5)
