"""The corpora and their batches, on miniatures made here.

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
from attune_training.data.audio import read_speech, trim_silence
from attune_training.data.batches import Example, Examples, TextTokens, collate, similar_length_batches
from attune_training.data.emobank import read_emobank
from attune_training.data.ravdess import ClipName, derived_vad, parse_clip_name, read_ravdess
from attune_training.data.utterance import Utterance


def test_clip_name_says_what_was_acted():
    assert parse_clip_name("03-01-05-02-01-02-24") == ClipName("angry", "strong", 1, 2, 24)
    assert parse_clip_name("03-01-01-01-02-01-01") == ClipName("neutral", "normal", 2, 1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "03-02-05-02-01-02-24",  # Song, not speech.
        "03-01-09-02-01-02-24",
        "03-01-05-03-01-02-24",
        "03-01-05-02-03-02-24",
        "03-01-05-02-01-03-24",
        "03-01-05-02-01-02-25",
        "03-01-05-02-01-02-00",
        "holiday",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not the name of a RAVDESS speech clip"):
        parse_clip_name(name)


@pytest.mark.parametrize(
    ("category", "intensity", "expected"),
    [
        ("neutral", "normal", (3.0, 2.575, 3.0)),
        ("happy", "normal", (4.105, 3.595, 3.425)),
        ("angry", "strong", (1.375, 4.5, 4.25)),
        ("sad", "strong", (1.625, 2.0, 2.0)),
    ],
)
def test_targets_are_derived_from_category_and_intensity(category, intensity, expected):
    assert derived_vad(category, intensity) == pytest.approx(expected)


def write_clip(folder: Path, name: str, size: int = 1600, rate: int = 16_000) -> None:
    folder.mkdir(exist_ok=True)
    tone = 0.5 * np.sin(np.arange(size) * 0.2).astype(np.float32)
    soundfile.write(folder / f"{name}.flac", tone, rate)


def test_ravdess_is_read_by_actor(tmp_path):
    write_clip(tmp_path, "03-01-05-02-01-01-01")
    write_clip(tmp_path / "Actor_02", "03-01-03-01-02-01-02")
    write_clip(tmp_path, "03-01-03-01-02-01-03")
    clips = read_ravdess(tmp_path, [1, 2])
    assert [clip.speaker for clip in clips] == ["actor-01", "actor-02"]
    assert clips[1].transcript == "Dogs are sitting by the door."
    assert clips[0].vad() == pytest.approx((1.375, 4.5, 4.25))


def test_ravdess_without_the_asked_actors_is_refused(tmp_path):
    write_clip(tmp_path, "03-01-05-02-01-01-01")
    with pytest.raises(ValueError, match=r"no RAVDESS clip of the actors \[7\]"):
        read_ravdess(tmp_path, [7])


def test_emobank_is_read_by_split(tmp_path):
    path = tmp_path / "emobank.csv"
    path.write_text('id,split,V,A,D,text\n1,train,3.5,2.0,3,"Hi, you."\n2,dev,1,2,3,No\n3,train,3,3,3,.."\n')
    assert read_emobank(path, "train") == [Utterance(None, "Hi, you.", 3.5, 2.0, 3.0, speaker="")]
    with pytest.raises(ValueError, match="no row of the split 'test'"):
        read_emobank(path, "test")


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("word,valence\nhome,8\n")
    with pytest.raises(ValueError, match="its header must name A, D, V, split, text"):
        read_emobank(path, "train")


def test_speech_is_read_as_16_khz_mono(tmp_path):
    stereo = np.stack([np.full(4410, 0.5), np.full(4410, 0.1)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="FLOAT")
    samples = read_speech(tmp_path / "a.wav")
    assert samples.shape == (1600,)
    assert samples[800] == pytest.approx(0.3, abs=1e-3)


def test_unreadable_audio_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"a\.wav cannot be read as audio"):
        read_speech(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16_000)
    with pytest.raises(ValueError, match=r"b\.wav holds no audio"):
        read_speech(tmp_path / "b.wav")


def test_silence_is_trimmed_but_for_a_margin():
    tone = np.sin(np.arange(3200) * 0.3).astype(np.float32)
    padded = np.concatenate([np.zeros(16_000, np.float32), tone, np.zeros(8000, np.float32)])
    trimmed = trim_silence(padded)
    assert len(trimmed) == 3200 + 2 * 1600
    np.testing.assert_array_equal(trimmed[1600:4800], tone)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_silence_alone_is_left(size):
    silence = np.zeros(size, np.float32)
    np.testing.assert_array_equal(trim_silence(silence), silence)


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
