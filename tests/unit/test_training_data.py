"""Batches of utterances, on miniatures made here.

.venv/bin/pytest tests/unit/test_training_data.py
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from attune_training.augmentation import mask_spectrogram
from attune_training.config import tiny_config
from attune_training.data.batches import Collator, Example, TextTokens, read_examples, similar_length_batches
from attune_training.data.utterance import Utterance


@pytest.fixture
def tokens(tmp_path):
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=16)  # As MiniLM's own file does.
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokens.of_folder(tmp_path, max_tokens=4)


def example(samples, words="a", weight=1.0):
    waveform = None if samples is None else np.full(samples, 16_000, np.int16)
    return Example(waveform, words, np.array([2.0, 3.0, 4.0], np.float32), weight)


def test_a_batch_is_padded_and_has_an_attention_mask(tokens):
    batch = Collator(tokens, "arousal_dominance", 8.0)([example(500, "a b"), example(None, "a b c d", weight=3.0)])
    assert batch.waveform.shape == (2, 500)
    assert batch.num_samples.tolist() == [[500], [400]]
    assert batch.input_ids.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.audio_present.tolist() == [1.0, 0.0]
    assert batch.weight.tolist() == [[1.0], [3.0]]
    assert batch.target.tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert batch.category.tolist() == [-1, -1]
    assert batch.waveform[0].numpy() == pytest.approx(16_000 / 32_767)
    assert not batch.waveform[1].any()


def test_batch_is_never_shorter_than_a_window(tokens):
    assert Collator(tokens, "valence", 8.0)([example(10)]).waveform.shape == (1, 400)


def test_longer_audio_is_cut(tokens):
    assert Collator(tokens, "valence", 0.05)([example(2000)]).waveform.shape == (1, 800)


def test_changed_waveforms_take_the_place_of_the_examples_own(tokens):
    batch = Collator(tokens, "valence", 8.0)([example(500)], [np.full(600, 0.25, np.float32)])
    assert batch.waveform.shape == (1, 600)
    assert batch.waveform.unique().tolist() == [0.25]


def test_batches_hold_similar_lengths_and_every_example_once():
    examples = [example(size) for size in (900, 100, 500, 300, 700)]
    fixed = similar_length_batches(examples, 2, random=None)
    assert [[item.size() for item in batch] for batch in fixed] == [[100, 300], [500, 700], [900]]
    shuffled = similar_length_batches(examples, 2, np.random.default_rng(0))
    assert sorted(item.size() for batch in shuffled for item in batch) == [100, 300, 500, 700, 900]


def test_tokens_are_cut_and_not_padded(tokens):
    assert tokens("a b") == [1, 2]
    assert tokens("a b c d a b") == [1, 2, 3, 4]


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        TextTokens.of_folder(tmp_path)


def test_the_letters_of_a_trial_run_fit_the_tiny_tower():
    ids = TextTokens.of_letters()("It's 5 o'clock, Zoë!")
    assert (ids[0], ids[-1]) == (2, 3)
    assert max(ids) < tiny_config("valence").text.vocab_size
    assert 1 not in ids


def test_utterances_are_read_with_silence_trimmed(tmp_path):
    tone = 0.5 * np.sin(np.arange(8000) * 0.2).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", np.pad(tone, (16_000, 16_000)), 16_000)
    spoken = Utterance(tmp_path / "a.flac", "hello", 4.0, 2.0, 3.0, "x", category="calm")
    words = Utterance(None, "there", 1.0, 2.0, 3.0, "x")
    seen = []
    first, second = read_examples(
        [spoken, words], weight=2.0, categories=["angry", "calm"], progress=lambda: seen.append(1)
    )
    assert 8000 <= len(first.waveform) < 8000 + 2 * 2000
    assert np.abs(first.samples()).max() == pytest.approx(0.5, abs=0.01)
    assert (first.category, first.weight, first.vad.tolist()) == (1, 2.0, [4.0, 2.0, 3.0])
    assert (second.category, second.waveform, second.size()) == (-1, None, 5)
    assert len(seen) == 2


def test_spectrogram_is_masked_lightly_and_row_by_row():
    torch.manual_seed(0)
    inputs = torch.ones(8, 80, 200)
    masked = mask_spectrogram(inputs)
    assert inputs.all(), "the inputs are left as they are"
    share = 1 - masked.mean(dim=(1, 2))
    assert (share < 0.4).all()
    assert share.mean() > 0.1
    assert len({round(value, 4) for value in share.tolist()}) > 1
    lost = masked[0] == 0
    whole = lost.all(dim=0)[None, :] | lost.all(dim=1)[:, None]
    assert (lost == whole).all(), "only whole frames and whole channels are masked"
