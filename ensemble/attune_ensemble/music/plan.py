"""Music as a function of time: what a piece shall be, moment by moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attune_client.protocol.music_spec import MusicSpec

__all__ = ["ConstantPlan", "MusicPlan"]


class MusicPlan(Protocol):
    """Tells an engine what to play at a time of the piece, in seconds from its beginning.

    An engine asks again and again while it makes the piece, at the beginning of what it makes next, and may look up to
    12 s further for changes within that; each says how far ahead of its listener it makes music. The same time may be
    asked for again, and the answer may have changed. An engine asks from whichever thread makes the music, so an answer
    must come at once.
    """

    def spec_at(self, time_s: float) -> MusicSpec:
        """The specification of the music that sounds at `time_s`."""
        ...

    def prompt_at(self, time_s: float) -> str:
        """The prompt, in words, of the music that sounds at `time_s`."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantPlan:
    """The same specification and prompt from beginning to end."""

    spec: MusicSpec
    prompt: str

    def spec_at(self, time_s: float) -> MusicSpec:
        """The specification, whatever the time."""
        return self.spec

    def prompt_at(self, time_s: float) -> str:
        """The prompt, whatever the time."""
        return self.prompt
