"""The interface of every prompt writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.knowledge import Emotion
from attune_ensemble.prompting.specification import Vad

__all__ = ["BART", "CALLER", "TEMPLATE", "Material", "Prompt", "PromptWriter", "Summary", "WriterOptions"]

TEMPLATE = "template"
"""Name of the template writer."""

BART = "bart"
"""Name of the writer whose summaries are BART's."""

CALLER = "caller"
"""Name of the writer of a prompt that was given by the caller."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of a description, and the name of its writer."""

    text: str
    writer: str


@dataclass(frozen=True, slots=True)
class Material:
    """What a prompt is written from.

    `summary` is that of the emotion's description in the knowledge index, `vad` what was measured (None: nothing was),
    `words` the caller's free text where the emotion was retrieved for it.
    """

    emotion: Emotion
    vad: Vad | None
    spec: MusicSpec
    summary: Summary
    words: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text for the music engine, and the name of its writer."""

    text: str
    writer: str


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """What a writer is made from: the parameters of `music_prompt`, its exported folder, and cpu or a GPU (cuda:1)."""

    settings: Mapping[str, str]
    folder: Path
    device: str


class PromptWriter(Protocol):
    """A writer of music prompts."""

    name: str

    def write(self, material: Material, *, context: CallContext) -> Prompt:
        """Write a prompt. Raises what `CallContext.check` raises, where it takes longer than an instant."""
        ...

    def close(self) -> None:
        """Give back what the writer holds."""
        ...
