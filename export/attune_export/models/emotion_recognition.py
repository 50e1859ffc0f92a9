"""`emotion_recognition`: the ensemble of tokenizer, regressors and classifier."""

from __future__ import annotations

from attune_client.protocol.models import (
    AROUSAL_DOMINANCE_MODEL,
    EMOTION_CLASSIFIER,
    EMOTION_RECOGNITION,
    TEXT_TOKENIZER,
    VALENCE_MODEL,
)
from attune_export.served_model import Kind, ServedModel

__all__ = ["MODEL"]

# The tokenizer, then the two regressors side by side, then the classifier. A tensor keeps its name all the way
# through, so the maps follow from the models' own declarations.
_STEPS = (TEXT_TOKENIZER, VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL, EMOTION_CLASSIFIER)

MODEL = ServedModel(EMOTION_RECOGNITION, Kind.ENSEMBLE, steps=_STEPS)
