"""How the engine runs. Imports no torch: the factory reads the usual settings without it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine runs.

    `slots`: requests at a time. `queue`: requests that may wait. `window_s`: context, in seconds; a longer piece slides
    on, reading the last `kept_s` again. `first_chunk_s`: the first audio; each further chunk is twice as long, up to
    `longest_chunk_s`. `ahead_s`: audio made ahead of a listener before its slot waits.
    """

    slots: int = 8
    queue: int = 64
    window_s: float = 30.0
    kept_s: float = 20.0
    max_prompt_tokens: int = 256
    first_chunk_s: float = 0.25
    longest_chunk_s: float = 2.0
    ahead_s: float = 30.0
