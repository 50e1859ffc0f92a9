"""The interface of every prompt writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.prompting.knowledge import Emotion
from attune_ensemble.prompting.specification import Vad

__all__ = ["CALLER", "Prompt", "PromptWriter"]

CALLER = "caller"
"""The writer of a prompt that whoever asked for the music sent along."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words for the music engine, and the name of the writer that made them."""

    text: str
    writer: str


class PromptWriter(Protocol):
    """Writes the prompt for an emotion's music."""

    name: str

    def write(self, emotion: Emotion, vad: Vad | None, spec: MusicSpec) -> Prompt:
        """The prompt for `emotion`, heard at `vad` (None: not measured), to be played as `spec`."""
        ...
