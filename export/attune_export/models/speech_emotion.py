"""`speech_emotion`: from a recording to its words and its emotion, by calling the other models."""

from __future__ import annotations

from attune_client.protocol.models import REGRESSOR_MAX_BATCH, SPEECH_EMOTION
from attune_client.protocol.profiles import CHOICE_DIR, EMBEDDED, GPU
from attune_export.choice import CHOICE_SETTINGS, choice_part
from attune_export.parts import ExportOptions, Part
from attune_export.served_model import PUBLIC, Kind, Places, ServedModel, Settings, segments_per_call

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    return choice_part(SPEECH_EMOTION, options)


MODEL = ServedModel(
    SPEECH_EMOTION,
    Kind.PYTHON,
    settings={
        # A few at work keep two cores busy; more would only take them from one another, and each would last longer.
        EMBEDDED: Settings(
            parameters=CHOICE_SETTINGS | segments_per_call(4), places=Places(max_concurrent=4, max_waiting=28)
        ),
        GPU: Settings(parameters=CHOICE_SETTINGS | segments_per_call(REGRESSOR_MAX_BATCH), places=PUBLIC),
    },
    weights=CHOICE_DIR,
    part=_part,
)
