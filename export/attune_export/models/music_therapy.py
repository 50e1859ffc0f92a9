"""`music_therapy`: from a recording or a wish to music, by calling the other models."""

from __future__ import annotations

from attune_client.protocol.models import MUSIC_THERAPY, REGRESSOR_MAX_BATCH
from attune_client.protocol.profiles import CHOICE_DIR, EMBEDDED, GPU
from attune_export.choice import CHOICE_SETTINGS, choice_part
from attune_export.parts import ExportOptions, Part
from attune_export.served_model import Kind, Places, ServedModel, Settings, ahead, segments_per_call

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    return choice_part(MUSIC_THERAPY, options)


MODEL = ServedModel(
    MUSIC_THERAPY,
    Kind.PYTHON,
    settings={
        # A stream stays 8 MiB ahead of its listener, so one of longer music keeps its place about as long as it is
        # listened to, and waits nearly all of that time, which costs a thread and that much music. Two cores compose
        # for some 40 listeners at once; more places than that are for those who have paused.
        EMBEDDED: Settings(parameters=CHOICE_SETTINGS | segments_per_call(4) | ahead(8 * 2**20), places=Places(64, 16)),
        # More places than the engine has (80), so that it is the engine that refuses.
        GPU: Settings(
            parameters=CHOICE_SETTINGS | segments_per_call(REGRESSOR_MAX_BATCH) | ahead(8 * 2**20),
            places=Places(96, 16),
        ),
    },
    weights=CHOICE_DIR,
    part=_part,
)
