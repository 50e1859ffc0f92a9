"""`emotion_encoder`: what the regressors have in common, in front of them."""

from __future__ import annotations

from attune_client.protocol.models import EMOTION_ENCODER
from attune_export.regressor import regressor

__all__ = ["MODEL"]

MODEL = regressor(EMOTION_ENCODER)
