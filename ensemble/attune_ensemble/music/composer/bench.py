"""Benchmark of the composer: real-time factors, and time to the first chunk. Run on one core:

    OMP_NUM_THREADS=1 taskset -c 0 python -m attune_ensemble.music.composer.bench

"cold" is a new engine in a new process, imports included; "warm" is the same engine on another seed. First chunks are
given in wall-clock time and in CPU time, and speed as seconds of audio per second of CPU time, which is independent of
other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from attune_client.bench.report import hardware
from attune_client.protocol.music_spec import INSTRUMENTS, MusicSpec

SPECS = {
    "solo piano": MusicSpec(66, "aeolian", "E", ("piano",), "p"),
    "quartet": MusicSpec(60, "ionian", "C", ("piano", "strings", "cello", "flute"), "p"),
    "folk band": MusicSpec(104, "lydian", "F", ("nylon_guitar", "flute", "contrabass", "frame_drum"), "mf"),
    "slow pads": MusicSpec(40, "phrygian", "E", ("strings", "choir", "warm_pad", "harp"), "pp"),
    "all twenty": MusicSpec(72, "mixolydian", "G", INSTRUMENTS, "mf"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one specification: time to the first chunk in seconds, cold and warm, and speed in times real time."""

    name: str
    cold_first_s: float
    cold_first_cpu_s: float
    warm_first_s: float
    warm_first_cpu_s: float
    cold_speed: float
    warm_speed: float


def measure(name: str, duration_s: float, chunk_s: float) -> Result:
    """Render one specification twice in this process, which must be new."""
    started, cpu_started = time.perf_counter(), time.process_time()
    from attune_ensemble.music.composer.engine import ComposerEngine
    from attune_ensemble.music.engine import MusicRequest
    from attune_ensemble.music.plan import ConstantPlan

    engine = ComposerEngine()
    figures = []
    for seed in (1, 2):
        chunks = engine.generate(MusicRequest(ConstantPlan(SPECS[name], ""), duration_s, seed), chunk_s)
        next(chunks)
        first_s, first_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        for _ in chunks:
            pass
        figures.append((first_s, first_cpu_s, duration_s / (time.process_time() - cpu_started)))
        started, cpu_started = time.perf_counter(), time.process_time()
    cold, warm = figures
    return Result(name, *cold[:2], *warm[:2], cold[2], warm[2])


def _measure_in_new_process(name: str, duration_s: float, chunk_s: float) -> Result:
    arguments = ["--only", name, "--seconds", str(duration_s), "--chunk", str(chunk_s)]
    command = [sys.executable, "-m", "attune_ensemble.music.composer.bench", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Result(**json.loads(output))


def main() -> None:
    """Print a hardware line, a table, and the same data as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each piece")
    parser.add_argument("--chunk", type=float, default=1.0, help="length of a chunk in seconds")
    parser.add_argument("--only", choices=SPECS, help="one specification, in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(asdict(measure(arguments.only, arguments.seconds, arguments.chunk))))
        return
    machine = f"{hardware()}; load averages {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    print(machine)
    print(f"{'':12}{'first chunk, s (CPU s)':>32}{'x real time':>18}{'relative cost':>16}")
    print(f"{'':12}{'cold':>16}{'warm':>16}{'cold':>9}{'warm':>9}{'to solo piano':>16}")
    results = [_measure_in_new_process(name, arguments.seconds, arguments.chunk) for name in SPECS]
    for r in results:
        cold, warm = (
            f"{r.cold_first_s:.2f} ({r.cold_first_cpu_s:.2f})",
            f"{r.warm_first_s:.2f} ({r.warm_first_cpu_s:.2f})",
        )
        cost = results[0].warm_speed / r.warm_speed
        print(f"{r.name:12}{cold:>16}{warm:>16}{r.cold_speed:9.1f}{r.warm_speed:9.1f}{cost:16.2f}")
    print(json.dumps({"hardware": machine, "seconds": arguments.seconds, "results": [asdict(r) for r in results]}))


if __name__ == "__main__":
    main()
