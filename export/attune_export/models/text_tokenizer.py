"""`text_tokenizer`: the tokenizer of BERT's vocabulary, from the sentence model's pinned weights."""

from __future__ import annotations

from attune_client.protocol.models import TEXT_TOKENIZER
from attune_client.protocol.profiles import EMBEDDED, TOKENIZER_FILE
from attune_export.parts import SENTENCE_MODEL, ExportOptions, Part, copied_weights
from attune_export.served_model import Kind, ServedModel, Settings

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    return copied_weights(TEXT_TOKENIZER, SENTENCE_MODEL, {TOKENIZER_FILE: TOKENIZER_FILE})


MODEL = ServedModel(TEXT_TOKENIZER, Kind.PYTHON, settings={EMBEDDED: Settings()}, weights=TOKENIZER_FILE, part=_part)
