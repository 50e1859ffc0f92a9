"""`speech_emotion`: from a recording to its words and its emotion, by calling the other models."""

from __future__ import annotations

from attune_client.protocol.models import SPEECH_EMOTION
from attune_client.protocol.profiles import EMBEDDED
from attune_export.served_model import PUBLIC, Kind, ServedModel, Settings

__all__ = ["MODEL"]

MODEL = ServedModel(SPEECH_EMOTION, Kind.PYTHON, settings={EMBEDDED: Settings(places=PUBLIC)})
