"""`arousal_dominance`: the regressor of arousal and dominance."""

from __future__ import annotations

from attune_client.protocol.models import AROUSAL_DOMINANCE_MODEL
from attune_export.regressor import regressor

__all__ = ["MODEL"]

MODEL = regressor(AROUSAL_DOMINANCE_MODEL)
