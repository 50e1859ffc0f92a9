"""Sentence embeddings as they are served: all-MiniLM-L6-v2, mean pooled, of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from attune_training.config import DIMENSIONS, TextTowerConfig
from attune_training.data.batches import Collator, Example, TextTokens, length_batches
from attune_training.models.layers import masked_mean
from attune_training.models.towers import TextTower
from attune_weights import fetch

__all__ = ["embed"]

_WEIGHTS = "all-minilm-l6-v2"
_BATCH = 32


@torch.inference_mode()
def embed(texts: Sequence[str], folder: Path | None = None) -> npt.NDArray[np.float32]:
    """Return the embeddings [N, 384]; an empty text has a row of zeros. `folder` None: the pinned weights.

    Raises:
        WeightsError: the weights cannot be fetched.
    """
    folder = folder or fetch(_WEIGHTS)
    tower, tokenize = TextTower(TextTowerConfig(), folder).eval(), TextTokens.of_folder(folder)
    collate, unlabelled = Collator(tokenize, "valence", 0.0), np.full(len(DIMENSIONS), np.nan, np.float32)
    found = np.zeros((len(texts), TextTowerConfig().width), np.float32)
    for rows in length_batches([len(text) for text in texts], _BATCH):
        batch = collate([Example(None, texts[row], unlabelled) for row in rows])
        features = tower(batch.input_ids, batch.attention_mask)
        found[rows] = functional.normalize(masked_mean(features, batch.attention_mask > 0)).numpy()
    found[[not text.strip() for text in texts]] = 0.0
    return found
