"""Requests as nobody should send them, built from the protocol's declarations: the same requests for the same seed.

    for request in bad_requests(count=10_000, seed=1):
        send(request.message)  # a serialised ModelInferRequest, or bytes that are none

Each is a whole request to one of the models with one thing wrong. What is wrong with its form (tensors, contents,
parameters, names) no model may see; with its values (options at and past their bounds, text, JSON) the model itself
answers: with an error that says what would be right, or, at a bound, with what was asked for.

`tensors` and `envelope` have the faults of form, `options`, `music_specs` and `sources` those of values, each in its
`FAULTS`; `building` makes the whole requests that they are put into.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from attune_client.protocol.models import MODELS
from attune_client.protocol.tensors import ModelSpec
from attune_ensemble.chaos.requests import envelope, music_specs, options, sources, tensors
from attune_ensemble.chaos.requests.building import ASKED, Draw, Fault, request_with, whole_request

__all__ = ["ASKED", "BadRequest", "bad_requests", "drawn", "request_with", "requests_of", "whole_request"]

_BATCH = 5_000

_FORM: dict[str, Fault] = tensors.FAULTS | envelope.FAULTS
_VALUES: dict[str, Fault] = options.FAULTS | music_specs.FAULTS | sources.FAULTS


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One request: what is wrong with it, in words; whether that is its form; the model; and what is sent."""

    fault: str
    of_form: bool
    model: str
    message: bytes

    @property
    def streams(self) -> bool:
        """Whether its model answers with a stream."""
        return self.model in MODELS and MODELS[self.model].decoupled


def bad_requests(count: int, seed: int) -> Iterator[BadRequest]:
    """Make so many requests, no two of them the same, some thousands at a time."""
    seen: set[bytes] = set()
    for batch in itertools.count():
        # Some come twice. Large batches have the fewest of those, since each begins with the simplest.
        for request in drawn(requests_of(), min(_BATCH, count + count // 2), seed * 1_000 + batch):
            digest = hashlib.blake2b(request.message, digest_size=16).digest()
            if len(seen) < count and digest not in seen:
                seen.add(digest)
                yield request
        if len(seen) == count:
            return


def drawn(strategy: st.SearchStrategy[Any], count: int, number: int) -> list[Any]:
    """So many examples of a strategy, the same for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def take(example: Any) -> None:
        found.append(example)

    take()
    return found


@st.composite
def requests_of(draw: Draw, models: tuple[ModelSpec, ...] = tuple(ASKED.values())) -> BadRequest:
    """A request to one of the models with one fault."""
    model = draw(st.sampled_from(models))
    of_form = draw(st.booleans())
    message = whole_request(model, raw=draw(st.booleans()))
    kinds = _FORM if of_form else _VALUES
    name = draw(st.sampled_from([name for name, (fits, _) in kinds.items() if fits(model)]))
    told = kinds[name][1](draw, model, message)
    if isinstance(told, bytes):
        return BadRequest(name, of_form, model.name, told)
    return BadRequest(f"{name}: {told}", of_form, model.name, message.SerializeToString(deterministic=True))
