"""Batches of utterances, on miniatures made here.

.venv/bin/pytest tests/unit/test_training_data.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from attune_training.augmentation import mask_spectrogram
from attune_training.data.batches import Example, Examples, TextTokens, collate, similar_length_batches
from attune_training.data.utterance import Utterance


def write_clip(folder: Path, name: str, size: int = 1600, rate: int = 16_000) -> None:
    folder.mkdir(exist_ok=True)
    tone = 0.5 * np.sin(np.arange(size) * 0.2).astype(np.float32)
    soundfile.write(folder / f"{name}.flac", tone, rate)


def example(samples, tokens, weight=1.0):
    waveform = None if samples is None else np.full(samples, 0.5, np.float16)
    return Example(waveform, list(range(1, tokens + 1)), np.array([2.0], np.float32), weight)


def test_batch_is_padded_and_says_what_is_real():
    batch = collate([example(500, 2), example(None, 4, weight=3.0)])
    assert batch.waveform.shape == (2, 500)
    assert batch.num_samples.tolist() == [[500], [400]]
    assert batch.input_ids.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.audio_present.tolist() == [1.0, 0.0]
    assert batch.weight.tolist() == [[1.0], [3.0]]
    assert not batch.waveform[1].any()


def test_batch_is_never_shorter_than_a_window():
    assert collate([example(10, 1)]).waveform.shape == (1, 400)


def test_batches_hold_similar_lengths_and_every_example_once():
    examples = [example(size, 1) for size in (900, 100, 500, 300, 700)]
    fixed = similar_length_batches(examples, 2, random=None)
    assert [[item.size() for item in batch] for batch in fixed] == [[100, 300], [500, 700], [900]]
    shuffled = similar_length_batches(examples, 2, np.random.default_rng(0))
    assert sorted(item.size() for batch in shuffled for item in batch) == [100, 300, 500, 700, 900]


@pytest.fixture
def tokens(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "there": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=16)  # As MiniLM's own file does.
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokens(tmp_path, max_tokens=3)


def test_tokens_are_cut_and_not_padded(tokens):
    assert tokens("hello there") == [1, 2]
    assert tokens("hello there hello there") == [1, 2, 1]


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        TextTokens(tmp_path)


@pytest.mark.parametrize(("target", "expected"), [("valence", [4.0]), ("arousal_dominance", [2.0, 3.0])])
def test_example_of_an_utterance(target, expected, tokens, tmp_path):
    write_clip(tmp_path, "03-01-05-02-01-01-01", size=4000)
    path = tmp_path / "03-01-05-02-01-01-01.flac"
    made = Examples(target, tokens, max_samples=3000).of(Utterance(path, "hello", 4.0, 2.0, 3.0, "x"), weight=2.0)
    assert made.target.tolist() == expected
    assert (made.size(), made.tokens, made.weight) == (3000, [1], 2.0)
    words = Examples(target, tokens, max_samples=3000).of(Utterance(None, "there", 4.0, 2.0, 3.0, "x"))
    assert words.waveform is None


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
