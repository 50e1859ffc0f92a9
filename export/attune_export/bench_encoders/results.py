"""What the measurements say: throughput, ratios, the share of the floor, and how far answers are from float32."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_export.bench_encoders.batches import excess
from attune_export.bench_encoders.clip import Clip
from attune_export.bench_encoders.towers import TowerName, configs
from attune_export.bench_encoders.turns import Measurements, Timed
from attune_export.bench_encoders.ways import Row
from attune_export.floor import cut_of_towers, least_operations, unweighted
from attune_training.metrics import agreement

__all__ = ["Result", "median_rates", "operations_of", "results"]

Vad = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one row.

    `per_s` are utterances a second, `real_time` seconds of speech a second, `ratio` how many times as fast as the first
    row it is, `of_floor` the share of the rate at which this machine multiplies the row's kind of numbers, `padding`
    how much is computed beyond the clips. Deviations are from the first row's answers, in points of V, A and D;
    `ccc_change` is by test part.
    """

    name: str
    what: str
    per_s: float
    real_time: float
    ratio: float
    of_floor: float
    padding: float
    max_deviation: Vad
    mean_deviation: Vad
    memory_bytes: int
    wall_s: tuple[float, ...]
    processor_s: float
    ccc: dict[str, Vad] = field(default_factory=dict)
    ccc_change: dict[str, Vad] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the figures for JSON, in which what is unknown is null."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def operations_of(name: TowerName, clips: Sequence[Clip]) -> int:
    """Return the least operations of all clips together: at true lengths, with what the regressors share done once."""
    models = unweighted(configs(name))
    cut = cut_of_towers(models[0], shares_streams=name == "shipped")
    return sum(least_operations(models, cut, clip.duration_s, len(clip.input_ids)) for clip in clips)


def median_rates(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median rate of each kind of numbers, in operations a second."""
    return {name: statistics.median(rates[name] for rates in rounds) for name in rounds[0]}


def results(
    rows: Sequence[Row],
    measured: Measurements,
    clips: Sequence[Clip],
    operations: int,
    labelled: Mapping[str, Sequence[Clip]],
) -> list[Result]:
    """Return the figures of every row that could be measured, in the order of `rows`."""
    rates = median_rates(measured.rates)
    found = [row for row in rows if row.name in measured.rows]
    first = measured.rows[found[0].name]
    return [_result(row, measured.rows[row.name], first, clips, operations, rates, labelled) for row in found]


def _result(
    row: Row,
    timed: Timed,
    first: Timed,
    clips: Sequence[Clip],
    operations: int,
    rates: Mapping[str, float],
    labelled: Mapping[str, Sequence[Clip]],
) -> Result:
    deviation = np.abs(timed.passes[-1].answers - first.passes[-1].answers)
    ccc = {part: _ccc(timed.labelled[part], of_part) for part, of_part in labelled.items()}
    before = {part: _ccc(first.labelled[part], of_part) for part, of_part in labelled.items()}
    return Result(
        name=row.name,
        what=row.what,
        per_s=len(clips) / timed.wall_s,
        real_time=sum(clip.duration_s for clip in clips) / timed.wall_s,
        ratio=timed.ratio,
        of_floor=operations / rates[row.numerics] / timed.wall_s if row.numerics in rates else math.nan,
        padding=excess(clips, row.batching),
        max_deviation=_vad(deviation.max(axis=0)),
        mean_deviation=_vad(deviation.mean(axis=0)),
        memory_bytes=max(taken.peak_bytes for taken in timed.passes),
        wall_s=tuple(taken.wall_s for taken in timed.passes),
        processor_s=statistics.median(taken.processor_s for taken in timed.passes),
        ccc=ccc,
        ccc_change={part: _vad(np.subtract(ccc[part], before[part])) for part in ccc},
    )


def _ccc(answers: npt.NDArray[np.float32], clips: Sequence[Clip]) -> Vad:
    """Return the concordance with the labels in each dimension; NaN without labels of it."""
    targets = np.array([clip.vad for clip in clips])
    return _vad(
        [
            agreement(answers[:, column], targets[:, column]).ccc
            if np.isfinite(targets[:, column]).sum() > 1
            else math.nan
            for column in range(3)
        ]
    )


def _vad(values: npt.ArrayLike) -> Vad:
    valence, arousal, dominance = (float(value) for value in np.asarray(values))
    return valence, arousal, dominance
