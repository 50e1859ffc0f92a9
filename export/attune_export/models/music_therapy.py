"""`music_therapy`: from a recording or a wish to music, by calling the other models."""

from __future__ import annotations

from attune_client.protocol.models import MUSIC_THERAPY
from attune_client.protocol.profiles import CHOICE_DIR, EMBEDDED, GPU
from attune_export.choice import CHOICE_SETTINGS, choice_part
from attune_export.parts import ExportOptions, Part
from attune_export.served_model import PUBLIC, Kind, Places, ServedModel, Settings

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    return choice_part(MUSIC_THERAPY, options)


MODEL = ServedModel(
    MUSIC_THERAPY,
    Kind.PYTHON,
    settings={
        EMBEDDED: Settings(parameters=CHOICE_SETTINGS, places=PUBLIC),
        # More places than the engine has (80), so that it is the engine that refuses.
        GPU: Settings(parameters=CHOICE_SETTINGS, places=Places(96, 16)),
    },
    weights=CHOICE_DIR,
    part=_part,
)
