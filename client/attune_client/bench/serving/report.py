"""The tables of a load, in Markdown, and the same as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from attune_client.bench.report import hardware
from attune_client.bench.serving.asking import REFUSED
from attune_client.bench.serving.measuring import Measured
from attune_client.bench.serving.processor import GUARD, SERVER
from attune_client.bench.serving.statistics import Stage
from attune_client.bench.serving.summary import PERCENTS, Latency

__all__ = ["generator_line", "json_line", "latency_table", "stage_table", "table", "throughput_table"]

_BUSY_CORES = 0.7
"""A load generator that is busy with more of its one core than this may be what is measured."""

_HANDOVER = "handover"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose first `words` columns are words, and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def throughput_table(measured: Sequence[Measured]) -> str:
    """What was asked, what was answered, and what became of the rest."""
    limit_s = measured[0].summary.limit_s
    heads = [
        *("model", "load", "requests", "answers/s", "audio s/s", "real-time factor"),
        *(f"goodput/s, within {limit_s:g} s", REFUSED, "failed"),
    ]
    return table(heads, [_throughput_row(each) for each in measured], words=2)


def _throughput_row(measured: Measured) -> list[str]:
    summary = measured.summary
    factor = summary.real_time_factor
    kinds = [f"{count} {kind}" for kind, count in sorted(summary.errors.items()) if kind != REFUSED]
    return [
        measured.model,
        str(measured.load),
        str(summary.requests),
        f"{summary.answers_per_s:.2f}",
        f"{summary.audio_per_s:.1f}",
        "" if factor is None else f"{factor:.4f}",
        f"{summary.goodput_per_s:.2f}",
        str(summary.refused),
        ", ".join(kinds) or "0",
    ]


def latency_table(measured: Sequence[Measured]) -> str:
    """Latencies in milliseconds from when a request was due; of the first music too, where it streams."""
    heads = ["model", "load", "ms until", "n", "avg", *(f"p{percent}" for percent in PERCENTS)]
    rows = [
        [each.model, str(each.load), what, *_latency_cells(latency)]
        for each in measured
        for what, latency in (("first chunk", each.summary.first), ("end", each.summary.total))
        if latency is not None
    ]
    return table(heads, rows, words=3)


def _latency_cells(latency: Latency) -> list[str]:
    times_s = (latency.avg, *(getattr(latency, f"p{percent}") for percent in PERCENTS))
    return [str(latency.count), *(_ms(1000 * time_s) for time_s in times_s)]


def stage_table(measured: Measured) -> str:
    """The means of a request at each model, by Triton's own count, and the processor time of each process.

    Of a model that answers in a thread Triton counts a handover alone. Processor time is that of an answer to the load.
    """
    heads = ["ms", "requests", "rows at once", "queue", "input", "compute", "output", "all", "processor"]
    spent = measured.server_processor_ms
    models = {stage.model: stage for stage in measured.stages}
    named = [*models, *(name for name in (GUARD, SERVER) if name in spent)]
    rest = sum(ms for name, ms in spent.items() if name not in named)
    rows = [[name, *_stage_cells(models.get(name)), _ms(spent[name]) if name in spent else ""] for name in named]
    if spent:
        rows += [
            ["everything else", *_stage_cells(None), _ms(rest)],
            ["sum", *_stage_cells(None), _ms(sum(spent.values()))],
        ]
    return table(heads, rows)


def _stage_cells(stage: Stage | None) -> list[str]:
    if stage is None:
        return [""] * 7
    counted = [str(stage.requests), f"{stage.batch:.1f}"]
    if stage.is_handover:
        return [*counted, *[""] * 2, _HANDOVER, *[""] * 2]
    times_ms = (stage.queue_ms, stage.input_ms, stage.compute_ms, stage.output_ms, stage.total_ms)
    return [*counted, *(_ms(time_ms) for time_ms in times_ms)]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def generator_line(measured: Sequence[Measured]) -> str:
    """What the load generator itself was busy with, and how late it sent; says so where that is too much."""
    cores = max(each.own_cores for each in measured)
    late_ms = max((1000 * each.summary.late.p99 for each in measured if each.summary.late is not None), default=0.0)
    line = f"load generator: at most {cores:.2f} of a core; requests were sent at most {late_ms:.1f} ms late (p99)"
    return line if cores <= _BUSY_CORES else f"{line}. It was too busy: these are its figures, not the server's"


def json_line(measured: Sequence[Measured], **more: Any) -> str:
    """Everything that was measured, times in seconds unless a name says otherwise."""
    return json.dumps({"hardware": hardware(), "loads": [_as_json(each) for each in measured]} | more)


def _as_json(measured: Measured) -> dict[str, Any]:
    content = asdict(measured)
    content["load"] = str(measured.load)
    content["summary"]["real_time_factor"] = measured.summary.real_time_factor
    return content
