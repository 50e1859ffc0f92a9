"""What the guard measures of the requests that it hands on, and the names of all that it tells Prometheus."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator

from tritonclient.grpc import service_pb2

from attune_client.protocol.models import MUSIC_SAMPLE_RATE
from attune_ensemble.serving.guard.signatures import Signature

__all__ = ["METRICS", "Histogram", "Measures", "Timed", "music_in"]

METRICS = {
    "attune_guard_load": ("gauge", "Requests in flight for each slot, of the model where that is the most"),
    "attune_guard_in_flight": ("gauge", "Requests that are not yet answered"),
    "attune_guard_slots": ("gauge", "Requests that the model works at at once"),
    "attune_guard_waiting": ("gauge", "Requests in flight beyond the model's slots"),
    "attune_guard_calls": ("gauge", "Calls of clients that are open, those without a message too"),
    "attune_guard_requests_total": ("counter", "Requests that ended, by how: answered, cancelled, or an error's code"),
    "attune_guard_request_seconds": ("histogram", "From a request to its answer, where it is answered as a whole"),
    "attune_guard_first_audio_seconds": ("histogram", "From a request to the first of its music"),
    "attune_guard_audio_seconds_total": ("counter", "Length of the music that was sent"),
}
"""Type and meaning of each family of samples."""

_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_MUSIC = "music"
"""The output with music, [N, C]."""


class Histogram:
    """How many durations are at most each of the bounds (in seconds, ascending), their number and their sum."""

    def __init__(self, bounds_s: tuple[float, ...] = _BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * len(bounds_s)
        self._count, self._sum_s = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._count += 1
        self._sum_s += seconds
        index = next((index for index, bound_s in enumerate(self._bounds_s) if seconds <= bound_s), None)
        if index is not None:
            self._counts[index] += 1

    def samples(self, name: str, labels: str) -> Iterator[tuple[str, float]]:
        """Prometheus' samples of this histogram; `labels` as in `model="valence"`."""
        for bound_s, count in zip(self._bounds_s, itertools.accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{{labels},le="{bound_s:g}"}}', float(count)
        yield f'{name}_bucket{{{labels},le="+Inf"}}', float(self._count)
        yield f"{name}_sum{{{labels}}}", self._sum_s
        yield f"{name}_count{{{labels}}}", float(self._count)


class Measures:
    """Collects by model; all on one event loop."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._first_audio: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._audio_s: defaultdict[str, float] = defaultdict(float)

    def begin(self, model: Signature) -> Timed:
        """One request, which begins now."""
        return Timed(self, model)

    def answered(self, model: str, after_s: float) -> None:
        """A request was answered as a whole."""
        self._answers[model].add(after_s)

    def heard(self, model: str, music_s: float, first_after_s: float | None) -> None:
        """Music was sent; `first_after_s` since its request, where it was the first."""
        self._audio_s[model] += music_s
        if first_after_s is not None:
            self._first_audio[model].add(first_after_s)

    def samples(self) -> dict[str, float]:
        """Samples for Prometheus by name and labels."""
        named = (
            ("attune_guard_request_seconds", self._answers),
            ("attune_guard_first_audio_seconds", self._first_audio),
        )
        samples = {
            sample: value
            for name, histograms in named
            for model, histogram in histograms.items()
            for sample, value in histogram.samples(name, f'model="{model}"')
        }
        for model, seconds in self._audio_s.items():
            samples[f'attune_guard_audio_seconds_total{{model="{model}"}}'] = seconds
        return samples


class Timed:
    """One request, whose answer or whose music is measured."""

    def __init__(self, measures: Measures, model: Signature) -> None:
        self._measures, self._model = measures, model
        self._plays = model.decoupled and _MUSIC in model.outputs
        self._has_played = False
        self._since_s = time.monotonic()

    def answered(self) -> None:
        """It came to its end. How long a stream lasts is its listener's choice, and not measured."""
        if not self._model.decoupled:
            self._measures.answered(self._model.name, time.monotonic() - self._since_s)

    def sent(self, response: bytes) -> None:
        """One response of its stream was sent."""
        if not self._plays or not (music_s := music_in(response)):
            return
        first_after_s = None if self._has_played else time.monotonic() - self._since_s
        self._has_played = True
        self._measures.heard(self._model.name, music_s, first_after_s)


def music_in(response: bytes) -> float:
    """The length of the music in a response of a stream, in seconds; 0 where it has none."""
    outputs = service_pb2.ModelStreamInferResponse.FromString(response).infer_response.outputs
    return next((tensor.shape[0] / MUSIC_SAMPLE_RATE for tensor in outputs if tensor.name == _MUSIC), 0.0)
