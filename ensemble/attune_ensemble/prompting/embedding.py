"""Sentence embeddings by the served models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from attune_client.protocol.models import SENTENCE_ENCODER
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.call import Call, CallContext

__all__ = ["embed"]


def embed(texts: Sequence[str], call: Call, *, context: CallContext) -> npt.NDArray[np.float32]:
    """Compute the sentence embeddings [N, 384] of N texts with `text_tokenizer` and `sentence_encoder`."""
    most = SENTENCE_ENCODER.max_batch_size
    parts = []
    for start in range(0, len(texts), most):
        batch = bytes_tensor(*texts[start : start + most])[:, None]  # [B, 1]
        tokens = call("text_tokenizer", {"transcript": batch}, context=context)
        inputs = {tensor.name: tokens[tensor.name] for tensor in SENTENCE_ENCODER.inputs}
        parts.append(call("sentence_encoder", inputs, context=context)["embedding"])
    return np.concatenate(parts)
