"""`music_therapy`: from a recording or a wish to music, by calling the other models."""

from __future__ import annotations

from attune_client.protocol.models import MUSIC_THERAPY
from attune_client.protocol.profiles import EMBEDDED, GPU
from attune_export.served_model import PUBLIC, Kind, Places, ServedModel, Settings

__all__ = ["MODEL"]

MODEL = ServedModel(
    MUSIC_THERAPY,
    Kind.PYTHON,
    settings={
        EMBEDDED: Settings(places=PUBLIC),
        GPU: Settings(places=Places(96, 16)),  # more than the engine accepts (80), so that the engine refuses
    },
)
