"""The choice of an emotion by VAD and words: the rule, its files, and fitting it on made-up texts.

.venv/bin/pytest tests/unit/test_emotion_choice.py
"""

from __future__ import annotations

import json
import re

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attune_ensemble.speech.choice import ChoiceError, EmotionChoice, choice_named, combined, read_choice
from attune_training.config import MAX_VAD, MIN_VAD
from attune_training.emotion_choice.embedding import embed
from attune_training.emotion_choice.fitting import Layer, fit_exponents, fit_layer, log_loss, vad_error
from attune_training.emotion_choice.storage import read_vad_error, save_choice
from attune_training.emotion_map.classifier import EmotionClassifier
from attune_training.evaluation.stories.options import choice_option, shipped_choice
from tests.conftest import ROOT

LABELS = ("glad", "sad", "mad")


def table(*rows):
    return np.array(rows, np.float32)


def test_a_product_of_probabilities_on_worked_numbers():
    """.6 * .2, .3 * .5 and .1 * .3 are .12, .15 and .03: of their sum .3, .4, .5 and .1."""
    joint = combined(table([0.6, 0.3, 0.1]), table([0.2, 0.5, 0.3]), 1.0, 1.0)
    assert joint == pytest.approx(table([0.4, 0.5, 0.1]), abs=1e-6)


def test_an_exponent_of_zero_leaves_a_side_out_and_one_half_softens():
    vad, words = table([0.64, 0.36, 0.0]), table([0.2, 0.5, 0.3])
    assert combined(vad, words, 0.0, 1.0) == pytest.approx(words, abs=1e-6)
    assert combined(vad, words, 0.5, 0.0)[0, :2] == pytest.approx([0.8 / 1.4, 0.6 / 1.4], abs=1e-3)


def test_nothing_is_ruled_out_by_one_side_alone():
    joint = combined(table([1.0, 0.0]), table([0.0, 1.0]), 1.0, 1.0)
    assert joint == pytest.approx(table([0.5, 0.5]))


def choice(**changes):
    weights = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    settings = {"vad_exponent": 1.0, "words_exponent": 1.0, "unsure_below": 0.5} | changes
    return EmotionChoice(LABELS, weights, np.zeros(3, np.float32), **settings)


def test_words_decide_between_what_vad_leaves_open():
    from_vad = table([0.45, 0.45, 0.1], [0.45, 0.45, 0.1])
    probabilities = choice().probabilities(from_vad, np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert probabilities.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_without_words_vad_decides_alone():
    from_vad = table([0.2, 0.7, 0.1])
    assert choice().probabilities(from_vad, np.zeros((1, 2), np.float32)) == pytest.approx(from_vad, abs=1e-6)


def test_the_words_of_a_whole_are_its_segments_by_their_shares():
    from_vad, words = table([0.4, 0.4, 0.2])[0], np.eye(2, dtype=np.float32)
    early, late = (choice().whole_probabilities(from_vad, words, shares) for shares in ([0.9, 0.1], [0.1, 0.9]))
    assert (early.argmax(), late.argmax()) == (0, 1)
    # All of it in one segment: as the segment itself.
    alone = choice().probabilities(from_vad[None], words[:1])[0]
    assert choice().whole_probabilities(from_vad, words, [1.0, 0.0]) == pytest.approx(alone, abs=1e-6)
    # Two segments of the same words, however they are shared out.
    assert choice().whole_probabilities(from_vad, words[[0, 0]], [0.3, 0.7]) == pytest.approx(alone, abs=1e-6)


def test_words_count_as_much_as_what_has_words_in_the_whole():
    from_vad, silent = table([0.2, 0.7, 0.1])[0], np.zeros((2, 2), np.float32)
    assert choice().whole_probabilities(from_vad, silent, [0.5, 0.5]) == pytest.approx(from_vad, abs=1e-6)
    words = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    alone = choice().probabilities(from_vad[None], words[1:])[0]
    assert choice().whole_probabilities(from_vad, words, [0.0, 1.0]) == pytest.approx(alone, abs=1e-6)
    # The less of the whole has words, the less they count, down to nothing.
    glad = [choice().whole_probabilities(from_vad, words, [1 - share, share])[0] for share in (0.0, 1e-9, 0.1, 0.5, 1)]
    assert glad == sorted(glad)
    assert glad[0] == pytest.approx(0.2, abs=1e-6)
    assert glad[1] == pytest.approx(0.2, abs=1e-6)


def saved(folder, **record):
    layer = Layer(choice().weights, choice().bias, 0.1)
    settings = {"labels": list(LABELS), "vad_exponent": 0.7, "words_exponent": 0.4, "unsure_below": 0.3}
    save_choice(folder, layer, settings | {"vad_error": [0.5, 0.6, 0.7]} | record)
    return folder


def test_what_is_saved_is_what_is_served(tmp_path):
    found = read_choice(saved(tmp_path / "choice"))
    assert (found.labels, found.vad_exponent, found.words_exponent, found.unsure_below) == (LABELS, 0.7, 0.4, 0.3)
    assert found.weights.tolist() == choice().weights.tolist()
    assert read_vad_error(tmp_path / "choice") == (0.5, 0.6, 0.7)


def test_settings_name_the_choice(tmp_path):
    folder = saved(tmp_path / "choice")
    assert choice_named("vad", tmp_path / "nowhere", LABELS) is None
    assert choice_named("vad_and_words", folder, LABELS) is not None
    with pytest.raises(ChoiceError, match="'both' is neither vad nor vad_and_words"):
        choice_named("both", folder, LABELS)
    with pytest.raises(ChoiceError, match="not those of the knowledge base"):
        choice_named("vad_and_words", folder, ("glad", "sad"))


def test_an_option_names_the_choice(tmp_path):
    @click.command()
    @choice_option
    def measure(choice):
        click.echo(choice)

    def answered(*arguments):
        return CliRunner().invoke(measure, arguments).output.strip()

    assert answered() == str(shipped_choice())
    assert answered("--emotion-choice", "vad") == ""
    assert answered("--emotion-choice", str(tmp_path)) == str(tmp_path)
    assert "does not exist" in answered("--emotion-choice", str(tmp_path / "none"))
    assert "FOLDER|vad" in answered("--help")


def test_the_names_of_the_files_are_written_once():
    """Training asks serving for them."""
    rooms = ("client", "ensemble", "export", "training")
    sources = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    named = [file for file in sources if re.search(r"choice\.json|words\.safetensors", file.read_text())]
    assert named == [ROOT / "ensemble/attune_ensemble/speech/choice.py"]


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(ChoiceError, match="holds no choice of emotions"):
        read_choice(tmp_path)
    folder = saved(tmp_path / "choice")
    record = json.loads((folder / "choice.json").read_text())
    (folder / "choice.json").write_text(json.dumps(record | {"labels": ["glad"]}))
    with pytest.raises(ChoiceError, match="1 emotions do not fit"):
        read_choice(folder)
    (folder / "words.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ChoiceError, match="holds no choice of emotions"):
        read_choice(folder)


def texts(random, centres, count):
    """Unit vectors about a centre for each emotion, and which emotion it is."""
    emotions = random.integers(len(centres), size=count)
    vectors = centres[emotions] + random.normal(0.0, 0.25, (count, centres.shape[1]))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), emotions


def test_a_layer_learns_emotions_and_decides_nothing_of_neutral_words():
    random = np.random.default_rng(0)
    centres = np.eye(4, 8)[:3]
    train, emotions = texts(random, centres, 150)
    validation, right = texts(random, centres, 60)
    neutral, _ = texts(random, np.eye(8)[7:], 30)
    layer = fit_layer(train, emotions, neutral, validation, right, 3)
    assert (layer.probabilities(validation).argmax(axis=1) == right).mean() > 0.9
    assert layer.probabilities(neutral).max(axis=1).mean() < 0.65


def test_exponents_find_the_side_that_knows():
    random = np.random.default_rng(0)
    right = random.integers(3, size=300)
    knowing = np.full((300, 3), 0.1, np.float32)
    knowing[np.arange(300), right] = 0.8
    guessing = random.dirichlet(np.ones(3), 300).astype(np.float32)
    found = fit_exponents(guessing, knowing, right)
    assert found.words > 0.9
    assert found.vad == pytest.approx(0.5)  # the least that VAD counts
    assert found.loss == pytest.approx(log_loss(combined(guessing, knowing, found.vad, found.words), right), abs=1e-6)


def test_the_error_of_vad_is_the_root_of_the_mean_square():
    assert vad_error(np.array([[3.0, 2.0, 1.0], [4.0, 2.0, 1.0]]), np.full((2, 3), 2.0)) == pytest.approx(
        (np.sqrt(2.5), 0.0, 1.0)
    )


def test_a_classifier_without_error_gives_the_papers_answer_twice():
    torch.manual_seed(0)
    classifier = EmotionClassifier(5, 8).eval()
    _, plain, expected = classifier(torch.tensor([[2.0], [4.5]]), torch.tensor([[3.0, 2.0], [1.0, 5.0]]))
    torch.testing.assert_close(plain, expected)


def test_a_classifier_with_an_error_averages_over_it():
    """Against many random draws of the same errors, on 1..5 all of them."""
    torch.manual_seed(0)
    error = (0.6, 0.8, 0.7)
    classifier = EmotionClassifier(5, 8, error).eval()
    classifier.maximum[:] = 5.0
    classifier.blocks[0][0].weight.data *= 10.0  # so that its answer changes within the error
    point = torch.tensor([[4.6, 3.0, 2.0]])
    with torch.no_grad():
        _, plain, expected = classifier(point[:, :1], point[:, 1:])
        drawn = (point + torch.randn(20_000, 3) * torch.tensor(error)).clamp(MIN_VAD, MAX_VAD)
        _, wanted, _ = EmotionClassifier.forward(_without_error(classifier), drawn[:, :1], drawn[:, 1:])
    torch.testing.assert_close(expected[0], wanted.mean(dim=0), atol=3e-3, rtol=0.0)
    assert not torch.allclose(plain, expected, atol=1e-3)


def _without_error(classifier):
    plain = EmotionClassifier(5, 8).eval()
    plain.load_state_dict(classifier.state_dict())
    return plain


def test_embeddings_are_of_unit_length_and_empty_texts_have_none():
    found = embed(["I could sing.", "  ", "I could cry, honestly."])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0, 0.0, 1.0], abs=1e-5)
    again = embed(["I could cry, honestly."])
    assert found[2] == pytest.approx(again[0], abs=1e-5)
