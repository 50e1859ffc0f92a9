"""Prompts to the hidden states that MusicGen hears: T5 once for each prompt, remembered across requests.

T5 computes in float32, whatever the decoder does: it overflows in float16, and it runs once for each prompt.

Letters: T text tokens, D width of the decoder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from attune_client.protocol.errors import InvalidOption

__all__ = ["Conditioner"]


class Conditioner:
    """The text encoder and its projection, with the states of the last `remembered` prompts."""

    def __init__(
        self,
        encoder: Any,
        projection: Any,
        tokenizer: Any,
        *,
        max_tokens: int,
        remembered: int = 256,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`projection` maps the encoder's width to the decoder's, or is None where they are the same.

        `dtype` is the decoder's, in which states are handed out.
        """
        self._encoder, self._projection, self._tokenizer = encoder, projection, tokenizer
        self.max_tokens, self._remembered, self._dtype = max_tokens, remembered, dtype
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, prompt: str) -> None:
        """Raise `InvalidOption` for more than `max_tokens` tokens: nothing is cut off in silence. For any thread."""
        self._tokens(prompt)

    def states(self, prompt: str, width: int) -> Tensor:
        """Hidden states [T, D] of a prompt; one row of zeros for an empty one. For one thread.

        Raises `InvalidOption` as `check` does.
        """
        if prompt not in self._states:
            self._states[prompt] = self.encode(prompt) if prompt.strip() else self._nothing(width)
        self._states.move_to_end(prompt)
        while len(self._states) > self._remembered:
            self._states.popitem(last=False)
        return self._states[prompt]

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """What `states` remembers, made anew."""
        # A prompt alone has no padding, and without a mask nothing has to be fetched from the device to look for it.
        input_ids = self._tokens(prompt)["input_ids"].to(next(self._encoder.parameters()).device)
        hidden = self._encoder(input_ids=input_ids).last_hidden_state
        projected: Tensor = hidden if self._projection is None else self._projection(hidden)
        return projected[0].to(self._dtype)

    def _tokens(self, prompt: str) -> Any:
        with self._lock:  # tokenizers refuse a second thread
            inputs = self._tokenizer(prompt, return_tensors="pt")
        count = inputs["input_ids"].shape[1]
        if count > self.max_tokens:
            raise InvalidOption(f"prompt has {count} tokens; it may have {self.max_tokens}")
        return inputs

    def _nothing(self, width: int) -> Tensor:
        return torch.zeros(1, width, dtype=self._dtype, device=next(self._encoder.parameters()).device)
