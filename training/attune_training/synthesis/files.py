"""Recordings to make, and those that an earlier run made."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile

from attune_training.config import SAMPLE_RATE
from attune_training.synthesis.engines import Waveform
from attune_weights.files import whole_file

__all__ = ["MANIFEST_NAME", "PROVENANCE_NAME", "Job", "file_name", "make_all", "write_manifest"]

MANIFEST_NAME, PROVENANCE_NAME = "manifest.csv", "synthesis.json"

_PROGRAMS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One file to make: `path` is relative to the output folder, `read` returns its samples."""

    path: Path
    read: Callable[[], Waveform]


def file_name(index: int, determining: Sequence[object]) -> str:
    """Return the name of text `index`, with a digest of everything that determines its audio."""
    digest = hashlib.sha256(json.dumps(determining).encode()).hexdigest()[:12]
    return f"{index:06d}-{digest}.flac"


def make_all(jobs: Sequence[Job], output: Path, progress: Callable[[int], None]) -> None:
    """Write the 16 kHz mono FLAC file of each job that is not there yet; `progress` is called with 1 after each."""
    for folder in {job.path.parent for job in jobs}:
        (output / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_PROGRAMS_AT_ONCE) as pool:
        for _ in pool.map(lambda job: _make(job, output), jobs):
            progress(1)


def _make(job: Job, output: Path) -> None:
    path = output / job.path
    if path.is_file():
        return
    with whole_file(path) as partial:
        soundfile.write(partial, job.read(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def write_manifest(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file, whole or not at all, and return its path."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path
