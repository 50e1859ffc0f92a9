"""The training loop on a tiny random model: it learns, keeps its best epoch, and goes on after a kill.

.venv/bin/pytest tests/unit/test_training_loop.py
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attune_training.checkpoints import load_regressor, trained_parameters
from attune_training.config import tiny_config
from attune_training.data.batches import Example, collate
from attune_training.evaluate import predict_examples
from attune_training.regressor import build_regressor
from attune_training.train import Corpus, Trainer, TrainSettings, epoch_examples, paired

SETTINGS = TrainSettings(epochs=2, learning_rate=3e-3, speech_batch=4, text_batch=4, text_samples_per_epoch=8)
COLUMNS = {"valence": 1, "arousal_dominance": 2}


def examples(count, columns, random, spoken):
    made = []
    for _ in range(count):
        value = random.uniform(1.5, 4.5)
        # A louder voice, or a larger token, has a larger target.
        waveform = (random.normal(size=random.integers(800, 1600)) * value / 10).astype(np.float16)
        tokens = [1, int(value * 20), 2]
        made.append(Example(waveform if spoken else None, tokens, np.full(columns, value, np.float32)))
    return made


def corpus(target, speech=8, text=12):
    random = np.random.default_rng(0)
    columns = COLUMNS[target]
    return Corpus(
        speech=examples(speech, columns, random, spoken=True),
        text=examples(text, columns, random, spoken=False),
        validation_speech=examples(4, columns, random, spoken=True),
        validation_text=examples(4, columns, random, spoken=False),
    )


def trainer(folder, target="valence", settings=SETTINGS):
    torch.manual_seed(0)
    return Trainer(build_regressor(tiny_config(target), None), corpus(target), settings, folder)


def test_voice_and_words_add_up_about_neutral():
    voice = Example(np.ones(5, np.float16), [1, 2], np.array([4.0, 4.8], np.float32))
    words = Example(None, [3], np.array([2.5, 3.9], np.float32), weight=4.0)
    both = paired(voice, words)
    assert both.target.tolist() == pytest.approx([3.5, 5.0])
    assert both.tokens == [3]
    assert both.waveform is voice.waveform
    assert both.weight == 1.0


def test_half_of_the_speech_is_paired_with_random_sentences():
    data = corpus("valence", speech=200)
    speech, text = epoch_examples(data, SETTINGS, np.random.default_rng(1))
    own = sum(made is given for made, given in zip(speech, data.speech, strict=True))
    assert 70 < own < 130
    assert len(text) == 8
    assert len({id(item) for item in text}) == 8


@pytest.mark.parametrize("target", ["valence", "arousal_dominance"])
def test_an_epoch_trains_logs_and_keeps_the_best(target, tmp_path):
    run = trainer(tmp_path, target)
    before = {name: value.detach().clone() for name, value in trained_parameters(run.model).items()}
    run.run()
    moved = [name for name, value in trained_parameters(run.model).items() if not torch.equal(value, before[name])]
    assert any(".lora_B" in name for name in moved)
    assert any(name.startswith("stages.") for name in moved)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert run.best_score == pytest.approx(max(line["score"] for line in lines), abs=1e-3)
    assert load_regressor(tmp_path / "best", None).config == run.model.config


def test_a_step_learns(tmp_path):
    run = trainer(tmp_path, settings=TrainSettings(epochs=20, learning_rate=2e-2, speech_batch=4, text_batch=4))
    batch = collate(run.corpus.text[:4])
    losses = [run._step(batch) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole")
    whole.run()

    killed = trainer(tmp_path / "killed")
    monkeypatch.setattr(killed, "_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = trainer(tmp_path / "killed")
    resumed.run()

    assert resumed.epoch == 2
    for name, value in trained_parameters(whole.model).items():
        torch.testing.assert_close(trained_parameters(resumed.model)[name], value, atol=1e-6, rtol=0)


def test_a_finished_run_is_left_alone(tmp_path):
    trainer(tmp_path).run()
    before = (tmp_path / "log.jsonl").read_text()
    trainer(tmp_path).run()
    assert (tmp_path / "log.jsonl").read_text() == before


def test_predictions_come_with_their_targets():
    torch.manual_seed(0)
    model = build_regressor(tiny_config("arousal_dominance"), None).eval()
    data = corpus("arousal_dominance").speech
    predicted, target = predict_examples(model, data, batch_size=3)
    assert predicted.shape == target.shape == (8, 2)
    shortest = min(data, key=Example.size)
    np.testing.assert_array_equal(target[0], shortest.target)
    alone, _ = predict_examples(model, [shortest])
    np.testing.assert_allclose(predicted[0], alone[0], atol=1e-4)
