"""Tokenising texts for the regressors' text tower and for the sentence encoder, padded to a few lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from attune_client.protocol.bounds import MAX_TOKENS
from attune_client.protocol.profiles import REGRESSORS_TOKENIZER, SENTENCES_TOKENIZER
from attune_client.protocol.tensors import Tensors, decode

BUCKETS = (16, 32, 64, 128, 256, MAX_TOKENS)
"""Token counts to which batches are padded, so that the dynamic batcher gets few different shapes."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of token ids and their attention mask, each [B, L]."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]


class TextTokenizer:
    """A tokenizer from its `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise B texts, truncated to 512 tokens and padded with zeros to the bucket of the longest.

        Padding is told by the mask alone: zero is a token of its own in some vocabularies.
        """
        encodings = self._tokenizer.encode_batch(list(texts))
        length = bucket_tokens(max(len(e.ids) for e in encodings))
        input_ids = np.zeros((len(encodings), length), np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, encoding in enumerate(encodings):
            input_ids[row, : len(encoding.ids)] = encoding.ids
            attention_mask[row, : len(encoding.ids)] = 1
        return Tokens(input_ids, attention_mask)


class TextTokenizers:
    """The service behind `text_tokenizer`: each text in both vocabularies."""

    def __init__(self, folder: Path) -> None:
        """Read both tokenizers from the folder that the export places."""
        self._regressors = TextTokenizer(folder / REGRESSORS_TOKENIZER)
        self._sentences = TextTokenizer(folder / SENTENCES_TOKENIZER)

    def answer(self, inputs: Tensors) -> Tensors:
        """Compute the outputs of `text_tokenizer`, each [B, L], from `transcript`, BYTES [B, 1]."""
        texts = [decode(text) for text in inputs["transcript"][:, 0]]
        words, sentences = self._regressors(texts), self._sentences(texts)
        return {
            "input_ids": words.input_ids,
            "attention_mask": words.attention_mask,
            "sentence_ids": sentences.input_ids,
            "sentence_mask": sentences.attention_mask,
        }


def bucket_tokens(num_tokens: int) -> int:
    """Return the smallest bucket for `num_tokens` (at most 512)."""
    return next(bucket for bucket in BUCKETS if bucket >= num_tokens)
