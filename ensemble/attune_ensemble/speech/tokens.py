"""Tokenising transcripts for the BERT towers, padded to a few lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from attune_client.protocol.bounds import MAX_TOKENS
from attune_client.protocol.tensors import Tensors, decode

BUCKETS = (16, 32, 64, 128, 256, MAX_TOKENS)
"""Token counts to which batches are padded, so that the dynamic batcher meets few different shapes."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of token ids and their mask, each [B, L]."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]


class TextTokenizer:
    """The BERT-uncased tokenizer from its `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise B texts, cut to 512 tokens and padded with zeros to the bucket of the longest."""
        encodings = self._tokenizer.encode_batch(list(texts))
        length = bucket_tokens(max(len(e.ids) for e in encodings))
        input_ids = np.zeros((len(encodings), length), np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, encoding in enumerate(encodings):
            input_ids[row, : len(encoding.ids)] = encoding.ids
            attention_mask[row, : len(encoding.ids)] = 1
        return Tokens(input_ids, attention_mask)

    def answer(self, inputs: Tensors) -> Tensors:
        """From `transcript`, BYTES [B, 1], to the outputs of `text_tokenizer`, each [B, L]."""
        tokens = self([decode(text) for text in inputs["transcript"][:, 0]])
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


def bucket_tokens(num_tokens: int) -> int:
    """The smallest bucket that holds `num_tokens` (at most 512)."""
    return next(bucket for bucket in BUCKETS if bucket >= num_tokens)
