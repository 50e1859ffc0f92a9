"""What the samples of one load come to: throughput, percentiles, errors by kind, goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from attune_client.bench.serving.asking import REFUSED, Sample
from attune_client.bench.serving.load import Window

__all__ = ["PERCENTS", "Latency", "Summary", "summarise"]

PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Mean and percentiles of `count` times, in seconds.

    A percentile is the least of the times that so many of them do not exceed (nearest rank): one that was measured, so
    that of fewer than a hundred times p99 is the longest.
    """

    count: int
    avg: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times_s: Iterable[float]) -> Self | None:
        """Of these times; None where there are none."""
        times = np.array(list(times_s))
        if not times.size:
            return None
        ranks = (float(value) for value in np.percentile(times, PERCENTS, method="inverted_cdf"))
        return cls(len(times), float(times.mean()), *ranks)


@dataclass(frozen=True, slots=True)
class Summary:
    """One load.

    `requests` were due in the window, and `errors` of them ended so. `first` and `total` are latencies of those that
    were answered, from when they were due: to the first music (None where nothing streams), and to the end of the
    answer. `answers_per_s` and `audio_per_s` are of what ended in the window. `goodput_per_s` counts the answers of
    which the first music, or the answer where nothing streams, came within `limit_s`. `late` is how much later than due
    requests were sent. `stages_s` are the pipeline's own times, averaged. Times in seconds.
    """

    seconds: float
    requests: int
    errors: dict[str, int]
    answers_per_s: float
    audio_per_s: float
    limit_s: float
    goodput_per_s: float
    first: Latency | None
    total: Latency | None
    late: Latency | None
    stages_s: dict[str, float]

    @property
    def real_time_factor(self) -> float | None:
        """Seconds for a second of audio, all that is in flight taken together; None where nothing was answered."""
        return 1 / self.audio_per_s if self.audio_per_s else None

    @property
    def refused(self) -> int:
        """How many requests the server did not take on."""
        return self.errors.get(REFUSED, 0)

    @property
    def failed(self) -> int:
        """How many requests ended in an error of another kind."""
        return sum(self.errors.values()) - self.refused


def summarise(samples: Sequence[Sample], window: Window, limit_s: float, streams: bool) -> Summary:
    """The summary of a load on a model that streams, or does not."""
    due = [sample for sample in samples if window.holds(sample.planned_s)]
    answered = [sample for sample in due if sample.is_answered]
    ended = [sample for sample in samples if sample.is_answered and window.holds(sample.ended_s)]
    good = [s for s in answered if (s.first_latency_s if streams else s.latency_s) <= limit_s]
    return Summary(
        seconds=window.seconds,
        requests=len(due),
        errors=dict(Counter(sample.error for sample in due if not sample.is_answered)),
        answers_per_s=len(ended) / window.seconds,
        audio_per_s=sum(sample.audio_s for sample in ended) / window.seconds,
        limit_s=limit_s,
        goodput_per_s=len(good) / window.seconds,
        first=Latency.of(s.first_latency_s for s in answered) if streams else None,
        total=Latency.of(s.latency_s for s in answered),
        late=Latency.of(s.sent_s - s.planned_s for s in due),
        stages_s=_mean_stages(answered),
    )


def _mean_stages(answered: Sequence[Sample]) -> dict[str, float]:
    """The pipeline's own times, in seconds by stage, averaged."""
    names = dict.fromkeys(name for sample in answered for name in sample.stages_s)
    return {
        name: float(np.mean([sample.stages_s[name] for sample in answered if name in sample.stages_s]))
        for name in names
    }
