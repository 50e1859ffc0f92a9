"""Sentence embeddings from the exported encoder, equal to those of the served models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from attune_client.protocol.bounds import MAX_TOKENS
from attune_client.protocol.models import EMBEDDING

__all__ = ["SentenceEmbedder"]


class SentenceEmbedder:
    """Embeds texts with an exported `sentence_encoder` and the tokenizer of its own vocabulary."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        # The file configures truncation and padding to 128 tokens; the served tokenizer does neither.
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed N texts as [N, 384] of unit length."""
        encodings = self._tokenizer.encode_batch(list(texts))
        inputs = {
            "sentence_ids": np.array([encoding.ids for encoding in encodings], np.int64),  # [N, L]
            "sentence_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
        }
        [embeddings] = self._session.run([EMBEDDING.name], inputs)
        return np.asarray(embeddings, np.float32)
