"""`valence`: the regressor of valence."""

from __future__ import annotations

from attune_client.protocol.models import VALENCE_MODEL
from attune_export.regressor import regressor

__all__ = ["MODEL"]

MODEL = regressor(VALENCE_MODEL)
