"""`text_tokenizer`: the tokenizers of the regressors' text tower and of the sentence encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

from attune_client.protocol.models import AROUSAL_DOMINANCE_MODEL, TEXT_TOKENIZER, VALENCE_MODEL
from attune_client.protocol.profiles import (
    EMBEDDED,
    REGRESSORS_TOKENIZER,
    SENTENCES_TOKENIZER,
    TOKENIZER_FILE,
    TOKENIZERS_DIR,
)
from attune_export.digests import digests_of_weights
from attune_export.errors import ExportError
from attune_export.parts import MPNET, SENTENCE_MODEL, ExportOptions, Part
from attune_export.regressor import tower_kinds
from attune_export.served_model import Kind, ServedModel, Settings
from attune_weights import fetch

__all__ = ["MODEL"]

_VOCABULARIES = {"bert": SENTENCE_MODEL, "mpnet": MPNET}
"""Names of the weights with the tokenizer of each kind of text tower; all BERTs have that of BERT-uncased."""


def _part(options: ExportOptions) -> Part:
    sources = {REGRESSORS_TOKENIZER: _regressors_vocabulary(options), SENTENCES_TOKENIZER: SENTENCE_MODEL}

    def build(target: Path) -> None:
        folder = target / TOKENIZERS_DIR
        folder.mkdir()
        for name, weights in sources.items():
            shutil.copyfile(fetch(weights) / TOKENIZER_FILE, folder / name)

    weights = tuple(dict.fromkeys(sources.values()))
    return Part(TEXT_TOKENIZER.name, digests_of_weights(*weights) | sources, weights, build)


def _regressors_vocabulary(options: ExportOptions) -> str:
    """Return the name of the weights with the regressors' tokenizer.

    Raises:
        ExportError: a regressor is missing, or the two have different vocabularies.
    """
    valence, other = (tower_kinds(spec, options).text for spec in (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL))
    if valence != other:
        raise ExportError(
            f"the regressors read words in different vocabularies: {VALENCE_MODEL.name} has a text tower of kind "
            f"{valence}, {AROUSAL_DOMINANCE_MODEL.name} one of kind {other}; export two of one kind"
        )
    return _VOCABULARIES[valence]


MODEL = ServedModel(TEXT_TOKENIZER, Kind.PYTHON, settings={EMBEDDED: Settings()}, weights=TOKENIZERS_DIR, part=_part)
