"""NVIDIA's perf_analyzer beside `attune bench serving`: the same requests, the same closed loops, in turn.

    attune serve --free-ports -- python -m tools.perf_analyzer --binary bin/perf_analyzer samples/*.wav

The binary is in a wheel of tritonclient, and wants two libraries that the packaged server has under other names:

    pip download --no-deps --dest wheel tritonclient==2.46.0
    unzip -j wheel/tritonclient-2.46.0-*.whl '*/perf_analyzer' -d bin && chmod +x bin/perf_analyzer
    libraries=~/.cache/attune/weights/tritonserver/nvidia_pytriton.libs
    ln -s $libraries/libb64-*.so.0d bin/libb64.so.0d
    ln -s $libraries/libcudart-*.so.12* bin/libcudart.so.12

Each round is perf_analyzer for its windows and then our loop; medians of the rounds are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.report import hardware, hardware_line
from attune_client.bench.serving.asking import ask_server
from attune_client.bench.serving.clips import mixed_clips
from attune_client.bench.serving.measuring import AtATime, Plan, Reading, measure
from attune_client.bench.serving.report import table
from attune_client.bench.serving.targets import Request, Target, make_target
from attune_client.protocol.models import EMOTION_RECOGNITION

_PERCENTS = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Figures:
    """Answers a second, and latencies in milliseconds, of one load."""

    answers_per_s: float
    p50: float
    p90: float
    p95: float
    p99: float


def main() -> None:
    """Print the table, and what it is of as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--binary", type=Path, required=True, help="perf_analyzer, its libraries beside it")
    parser.add_argument("--url", default=os.environ.get("ATTUNE_URL", "127.0.0.1:8001"))
    parser.add_argument("--concurrency", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=8.0, help="of our load, and of each of its windows")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loads = [int(each) for each in arguments.concurrency.split(",")]
    theirs, ours = asyncio.run(_measure(arguments, loads))
    print(hardware_line(), end="\n\n")
    print(_table(loads, theirs, ours), end="\n\n")
    rows = {"perf_analyzer": theirs, "attune": ours}
    told = {name: [[asdict(each) for each in rounds] for rounds in sides] for name, sides in rows.items()}
    print(json.dumps({"hardware": hardware(), "concurrency": loads} | told))


async def _measure(arguments: argparse.Namespace, loads: Sequence[int]) -> tuple[list[Any], list[Any]]:
    theirs: list[list[Figures]] = [[] for _ in loads]
    ours: list[list[Figures]] = [[] for _ in loads]
    async with AsyncAttuneClient(arguments.url) as client:
        target = await make_target(client, EMOTION_RECOGNITION.name, mixed_clips(arguments.audio), music_s=0)
        with tempfile.TemporaryDirectory() as name:
            data = Path(name) / "requests.json"
            data.write_text(json.dumps({"data": [_as_json(request) for request in target.requests]}))
            for _ in range(arguments.rounds):
                for place, load in enumerate(loads):
                    theirs[place].append(await asyncio.to_thread(_perf_analyzer, arguments, load, data))
                    ours[place].append(await _ours(client, target, load, arguments.seconds))
    return theirs, ours


def _as_json(request: Request) -> dict[str, Any]:
    """A request in perf_analyzer's input format; the first dimension, of the batch, is left out there."""
    return {name: _tensor(array[0]) for name, array in request.inputs.items()}


def _tensor(array: npt.NDArray[Any]) -> dict[str, Any]:
    if array.dtype == np.object_:
        return {"content": [bytes(each).decode() for each in array.flat], "shape": list(array.shape)}
    return {"b64": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape)}


def _perf_analyzer(arguments: argparse.Namespace, load: int, data: Path) -> Figures:
    """One run of the binary, which takes at least three windows, until they agree."""
    report = data.with_suffix(".csv")
    command = [arguments.binary.resolve(), "-m", EMOTION_RECOGNITION.name, "-u", arguments.url, "-i", "grpc"]
    command += ["--input-data", data, "--concurrency-range", f"{load}:{load}", "--max-threads", "1", "-f", report]
    command += ["-p", str(round(1000 * arguments.seconds)), "-s", "200"]
    libraries = {"LD_LIBRARY_PATH": str(arguments.binary.resolve().parent)}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | libraries)
    with report.open() as file:
        [row] = csv.DictReader(file)
    latencies_us = (float(row[f"{each} latency"]) for each in _PERCENTS)
    return Figures(float(row["Inferences/Second"]), *(each / 1000 for each in latencies_us))


async def _ours(client: AsyncAttuneClient, target: Target, load: int, seconds: float) -> Figures:
    async def read() -> Reading:
        return Reading()

    ask = partial(ask_server, client, target.model)
    measured = await measure(ask, target, AtATime(load), Plan(3 * seconds), read)
    total = measured.summary.total
    assert total is not None, measured.summary.errors
    latencies_s = (getattr(total, each) for each in _PERCENTS)
    return Figures(measured.summary.answers_per_s, *(1000 * each for each in latencies_s))


def _table(loads: Sequence[int], theirs: Sequence[Sequence[Figures]], ours: Sequence[Sequence[Figures]]) -> str:
    heads = ["at a time", "by", "answers/s", "min..max", *(f"{each} ms" for each in _PERCENTS)]
    rows = []
    for load, *sides in zip(loads, theirs, ours, strict=True):
        for name, rounds in zip(("perf_analyzer", "attune bench serving"), sides, strict=True):
            rates = [each.answers_per_s for each in rounds]
            latencies = [f"{median(getattr(each, what) for each in rounds):.0f}" for what in _PERCENTS]
            rows.append([str(load), name, f"{median(rates):.2f}", f"{min(rates):.2f}..{max(rates):.2f}", *latencies])
    return table(heads, rows, words=2)


if __name__ == "__main__":
    main()
