"""Tokenising transcripts: `pytest tests/unit/test_tokens.py`."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from attune_client.protocol.models import TEXT_TOKENIZER
from attune_ensemble.speech.tokens import BUCKETS, TextTokenizer, TextTokenizers, bucket_tokens

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "rain": 4, "sun": 5}


def save_tokenizer(path, vocabulary=VOCABULARY):
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.save(str(path))


@pytest.fixture
def tokenizer(tmp_path):
    save_tokenizer(tmp_path / "tokenizer.json")
    return TextTokenizer(tmp_path / "tokenizer.json")


def test_a_batch_is_padded_to_the_bucket_of_its_longest(tokenizer):
    tokens = tokenizer(["rain sun", "rain " * 20])
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (2, 32)
    assert tokens.input_ids.dtype == np.int64
    assert tokens.input_ids[0, :5].tolist() == [2, 4, 5, 3, 0]
    assert tokens.attention_mask.sum(axis=1).tolist() == [4, 22]


def test_no_words_are_two_tokens(tokenizer):
    assert tokenizer([""]).attention_mask.sum() == 2


def test_more_than_512_tokens_are_cut_and_closed(tokenizer):
    tokens = tokenizer(["sun " * 600])
    assert tokens.input_ids.shape == (1, 512)
    assert tokens.input_ids[0, -1] == VOCABULARY["[SEP]"]


def test_each_encoder_gets_the_tokens_of_its_own_vocabulary(tmp_path):
    save_tokenizer(tmp_path / "regressors.json")
    save_tokenizer(tmp_path / "sentences.json", VOCABULARY | {"rain": 5, "sun": 4})
    texts = np.array([[b"rain sun"], [b"sun"]], object)
    tokens = TextTokenizers(tmp_path).answer({"transcript": texts})
    assert set(tokens) == {tensor.name for tensor in TEXT_TOKENIZER.outputs}
    assert tokens["input_ids"][:, :4].tolist() == [[2, 4, 5, 3], [2, 5, 3, 0]]
    assert tokens["sentence_ids"][:, :4].tolist() == [[2, 5, 4, 3], [2, 4, 3, 0]]
    for mask in ("attention_mask", "sentence_mask"):
        assert tokens[mask].sum(axis=1).tolist() == [4, 3]


def test_buckets():
    assert [bucket_tokens(n) for n in (1, 16, 17, 512)] == [16, 16, 32, 512]
    assert sorted(BUCKETS) == list(BUCKETS)
