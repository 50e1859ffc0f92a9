"""The comparison with perf_analyzer, with a program in its place: `pytest tests/unit/test_perf_analyzer.py`."""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
from tools import perf_analyzer

from tests.conftest import SAMPLES
from tests.fake_server import SEGMENTS, FakeServer

# Writes what the real one writes, and keeps what it was given.
PROGRAM = """#!/bin/sh
cp "$8" {folder}/given.json
echo "$@" >> {folder}/arguments
cat > "${{14}}" << END
Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency
2,12.5,10,80000,90000,95000,99000
END
"""


def test_both_are_given_the_same_requests_and_shown_side_by_side(tmp_path, monkeypatch, capsys):
    binary = tmp_path / "perf_analyzer"
    binary.write_text(PROGRAM.format(folder=tmp_path))
    binary.chmod(0o755)
    with FakeServer() as server:
        options = ["--url", server.url, "--concurrency", "2", "--seconds", "0.1", "--rounds", "2"]
        monkeypatch.setattr(sys, "argv", ["perf_analyzer", "--binary", str(binary), *options, str(SAMPLES[0])])
        perf_analyzer.main()
    printed = capsys.readouterr().out
    assert "| 2 | perf_analyzer | 12.50 | 12.50..12.50 | 80 | 90 | 95 | 99 |" in printed
    told = json.loads(printed.splitlines()[-1])
    [rounds] = told["attune"]
    assert len(rounds) == 2
    assert all(each["answers_per_s"] > 0 for each in rounds)
    assert (tmp_path / "arguments").read_text().count("--concurrency-range 2:2") == 2
    rows = json.loads((tmp_path / "given.json").read_text())["data"]
    assert len(rows) == 4 * len(SEGMENTS["waveform"])  # the clip and its three cuts
    for row in rows[:2]:
        assert set(row) == set(SEGMENTS)
        waveform = np.frombuffer(base64.b64decode(row["waveform"]["b64"]), np.float32)
        assert (len(waveform), row["waveform"]["shape"]) == (32_000, [32_000])
    assert [row["transcript"]["content"] for row in rows[:2]] == [["so it goes"], ["and on"]]
