"""A corpus small enough for a test: synthetic clips whose loudness and words say what their labels are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

WORDS = {1: "bad sad", 2: "poor", 3: "table", 4: "nice", 5: "good joy"}


def write_manifest(folder: Path, count: int = 50, speakers: int = 5, seed: int = 0) -> Path:
    """Write `count` clips of a third of a second by `speakers` voices in as many sessions, and their manifest."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        level = index % 5 + 1
        vad = np.clip(level + random.normal(size=3) * 0.2, 1.0, 5.0).round(3)
        tone = np.sin(2 * np.pi * (100 + 60 * level) * np.arange(5000 + 60 * (index % 7)) / 16_000)
        soundfile.write(folder / f"{index}.wav", (0.1 * level * tone).astype(np.float32), 16_000)
        speaker = index // 5 % speakers
        part = ("train", "train", "train", "validation", "test")[speaker]
        rows.append(
            [f"{index}.wav", WORDS[level], *vad, f"voice-{speaker}", speaker + 1, WORDS[level].split()[0], part]
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["path", "transcript", "valence", "arousal", "dominance", "speaker", "session", "category", "split"]
        )
        writer.writerows(rows)
    return folder / "manifest.csv"
