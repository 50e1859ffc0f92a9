"""`emotion_recognition`: the ensemble of tokenizer, regressors and classifier; the protocol declares its steps."""

from __future__ import annotations

from attune_client.protocol.models import EMOTION_RECOGNITION
from attune_export.served_model import Kind, ServedModel

__all__ = ["MODEL"]

MODEL = ServedModel(EMOTION_RECOGNITION, Kind.ENSEMBLE)
