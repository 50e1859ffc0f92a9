"""How a music engine that samples tokens chooses them."""

from __future__ import annotations

from dataclasses import dataclass

from attune_client.protocol.errors import InvalidOption

__all__ = ["SamplingSettings"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How one request samples; `temperature` 0 takes the likeliest token. `top_k` 0 and `top_p` 1 leave all tokens.

    `guidance` is the scale of classifier-free guidance: 1 is none. The defaults are those of MusicGen's authors.
    Raises `InvalidOption` for a setting out of its range.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise InvalidOption(f"temperature must lie between 0 and 10, not {self.temperature:g}")
        if self.top_k < 0:
            raise InvalidOption(f"top_k must not be negative (0: all tokens), and is {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidOption(f"top_p must lie above 0 and at most at 1, not {self.top_p:g}")
        if not 1.0 <= self.guidance <= 20.0:
            raise InvalidOption(f"guidance must lie between 1 (none) and 20, not {self.guidance:g}")
