"""The interface of every prompt writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.prompting.knowledge import Emotion
from attune_ensemble.prompting.specification import Vad

__all__ = ["CALLER", "Prompt", "PromptWriter"]

CALLER = "caller"
"""Name of the writer of a prompt that was given by the caller."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text for the music engine, and the name of its writer."""

    text: str
    writer: str


class PromptWriter(Protocol):
    """A writer of music prompts."""

    name: str

    def write(self, emotion: Emotion, vad: Vad | None, spec: MusicSpec) -> Prompt:
        """Write the prompt for `emotion`, its measured `vad` (None: not measured) and the specification `spec`."""
        ...
