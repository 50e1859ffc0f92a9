"""Latency against load, drawn; the one module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attune_client.bench.serving.measuring import AtATime, Measured

__all__ = ["draw"]

_LINES = {"p50": "-", "p95": "--", "p99": ":"}


def draw(measured: Sequence[Measured], title: str, path: Path) -> None:
    """Write a picture: for each model a panel of latency over answers a second, a line for each percentile.

    Closed loops are joined in the order of their concurrency, open ones in that of their rate.
    """
    models = list(dict.fromkeys(each.model for each in measured))
    figure = Figure(figsize=(4.6 * len(models), 4.2), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        _draw_panel(axes, [each for each in measured if each.model == model])
        axes.set(title=model, xlabel="answers per second", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    panels[0].set_ylabel("latency, ms")
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_panel(axes: Any, measured: Sequence[Measured]) -> None:
    loops = {
        "closed loop": [each for each in measured if isinstance(each.load, AtATime)],
        "open loop": [each for each in measured if not isinstance(each.load, AtATime)],
    }
    kinds = [(loop, what) for loop in loops for what in ("first", "total")]
    for index, (loop, what) in enumerate(kinds):
        points = [each for each in loops[loop] if getattr(each.summary, what) is not None]
        for percentile, style in _LINES.items() if points else ():
            times_ms = [1000 * getattr(getattr(each.summary, what), percentile) for each in points]
            rates = [each.summary.answers_per_s for each in points]
            label = f"{'first chunk' if what == 'first' else 'end'} {percentile}, {loop}"
            axes.plot(rates, times_ms, style, color=f"C{index}", marker="o", markersize=3, label=label)
        for each in points:
            at = (each.summary.answers_per_s, 1000 * getattr(each.summary, what).p50)
            axes.annotate(str(each.load).split()[0], at, fontsize=7, xytext=(3, -9), textcoords="offset points")
