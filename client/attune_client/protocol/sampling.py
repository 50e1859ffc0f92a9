"""How a music engine that samples tokens chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from attune_client.protocol.bounds import MAX_GUIDANCE, MAX_TEMPERATURE, MIN_GUIDANCE
from attune_client.protocol.checks import check_number, quote
from attune_client.protocol.errors import InvalidOption

__all__ = ["SamplingSettings"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How one request samples; `temperature` 0 takes the likeliest token. `top_k` 0 and `top_p` 1 leave all tokens.

    `guidance` is the scale of classifier-free guidance: 1 is none. The defaults are those of MusicGen's authors.
    Raises `InvalidOption` for a setting of another type or out of its range.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 <= check_number("temperature", self.temperature) <= MAX_TEMPERATURE:
            raise InvalidOption(f"temperature must lie between 0 and {MAX_TEMPERATURE:g}, not {self.temperature:g}")
        if not isinstance(self.top_k, Integral) or isinstance(self.top_k, bool):
            raise InvalidOption(f"top_k must be a whole number, not {quote(self.top_k)}")
        if self.top_k < 0:
            raise InvalidOption(f"top_k must not be negative (0: all tokens), and is {self.top_k}")
        if not 0.0 < check_number("top_p", self.top_p) <= 1.0:
            raise InvalidOption(f"top_p must lie above 0 and at most at 1, not {self.top_p:g}")
        if not MIN_GUIDANCE <= check_number("guidance", self.guidance) <= MAX_GUIDANCE:
            rule = f"guidance must lie between {MIN_GUIDANCE:g} (none) and {MAX_GUIDANCE:g}"
            raise InvalidOption(f"{rule}, not {self.guidance:g}")
