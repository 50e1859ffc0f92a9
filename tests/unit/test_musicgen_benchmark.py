"""`attune bench music` on a tiny checkpoint: every row and every figure is there, on a GPU as well and where it fails.

.venv/bin/pytest tests/unit/test_musicgen_benchmark.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from attune_ensemble.music.musicgen import stepping
from attune_ensemble.music.musicgen.benchmark import rows as rows_module
from attune_ensemble.music.musicgen.benchmark.command import music
from attune_ensemble.music.musicgen.benchmark.rows import Setup, baseline_groups, own_groups, part_groups
from attune_ensemble.music.musicgen.loading import parts_of, random_checkpoint
from attune_ensemble.music.musicgen.stepping import Stepper
from tests.musicgen_models import Letters, save_tiny_musicgen
from tests.recorded_graphs import RecordedGraphs

ROOT = Path(__file__).parents[2]

ROWS = [
    "transformers generate, eager",
    "transformers generate, static cache",
    "static cache, fused, float32",
    "the engine, float32, with the codec",
    "the engine, float32, 4 requests of two lengths",
    "static cache, fused, int8",
    "the engine, int8, with the codec",
    "the engine, int8, 4 requests of two lengths",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "musicgen"
    save_tiny_musicgen(folder)
    return folder


def run(checkpoint, *arguments):
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--seconds", "0.5", *arguments]
    return CliRunner().invoke(music, options)


def test_every_row_is_timed_and_drawn(checkpoint, tmp_path):
    result = run(checkpoint, "--batch", "2", "--repeats", "1", "--plot", str(tmp_path / "plot.png"))
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert [row["name"] for row in figures["rows"]] == ROWS
    assert all(row["wall_s"] > 0 and row["memory"] > 0 for row in figures["rows"])
    assert figures["rows"][3]["audio_s"] == 1.0
    assert figures["rows"][4]["audio_s"] == 1.5
    assert len(figures["rows"][4]["first_audio_s"]) == 4
    assert [row["name"] for row in figures["parts"]] == [
        "T5, one prompt",
        "EnCodec, the whole piece",
        "EnCodec, chunks of 2 s",
    ]
    assert "| transformers generate, eager | 2 | 0.5 |" in result.stdout
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_faster_numerics_are_held_beside_float32(checkpoint):
    result = run(checkpoint, "--check-quality", "--json")
    assert result.exit_code == 0, result.output
    plain, int8, bfloat16 = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert (plain["deviation"], plain["agreement"], plain["kl"]) == (0, 1, 0)
    for row in (int8, bfloat16):
        assert 0 < row["deviation"] < 0.2
        assert row["agreement"] > 0.7
        assert row["likelihood"] == pytest.approx(plain["likelihood"], abs=0.1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batch", "0", "'0' is no list of whole numbers from 1 on"),
        ("--batch", "1,1.5", "whole numbers"),
        ("--seconds", "ten", "numbers from 0.1 on, such as 1,4"),
        ("--seconds", "0.01", "numbers from 0.1 on"),
        ("--seconds", "nan", "numbers from 0.1 on"),
        ("--seconds", "inf", "numbers from 0.1 on"),
    ],
)
def test_what_is_no_number_is_named(checkpoint, option, value, message):
    result = run(checkpoint, option, value)
    assert result.exit_code == 2
    assert message in result.output


def test_a_gpu_that_is_not_there_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(checkpoint, "--device", "cuda")
    assert result.exit_code == 2
    assert "there is no GPU" in result.output


def test_options_that_exclude_each_other(checkpoint):
    result = run(checkpoint, "--random-weights")
    assert result.exit_code == 2
    assert "exclude each other" in result.output


# What a cut or a failure leaves


def test_a_run_that_was_cut_short_keeps_what_it_had(checkpoint, tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert run(checkpoint, "--batch", "1", "--repeats", "1", "--record", str(whole)).exit_code == 0
    lines = whole.read_text().splitlines()
    assert len(lines) == 1 + 3 + len(ROWS)
    file.write_text("\n".join(lines[:4]))
    again = CliRunner().invoke(music, ["--from", str(file), "--plot", str(tmp_path / "plot.png")])
    assert again.exit_code == 0, again.output
    # What counts was measured first.
    assert "| static cache, fused, float32 | 1 | 0.5 |" in again.stdout
    assert "| the engine, float32, with the codec | 1 | 0.5 |" in again.stdout
    assert "transformers" not in again.stdout
    assert len(json.loads(again.stdout.splitlines()[-1])["rows"]) == 3
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_what_fails_costs_no_other_rows(checkpoint, monkeypatch):
    def without_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        yield

    monkeypatch.setattr(rows_module, "_transformers_rows", without_memory)
    result = run(checkpoint, "--batch", "2", "--repeats", "1")
    assert result.exit_code == 1
    figures = json.loads(result.stdout.splitlines()[-1])
    assert [row["name"] for row in figures["rows"]] == ROWS[2:]
    assert figures["failures"] == [
        "transformers, batch 2, 0.5 s: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    ]
    assert "- not measured: transformers, batch 2" in result.stdout
    assert "| static cache, fused, float32 | 2 | 0.5 |" in result.stdout
    assert "1.00x" not in result.stdout  # nothing to be held against


def test_slow_rows_come_last_and_make_the_beginning_of_a_piece(checkpoint, tmp_path):
    record = tmp_path / "record.jsonl"
    arguments = ("--batch", "1,2", "--repeats", "1", "--baseline-seconds", "0.2", "--record", str(record))
    result = run(checkpoint, *arguments)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    measured = [
        (line["row"]["name"].startswith("transformers"), line["row"]["batch"]) for line in lines if "row" in line
    ]
    assert measured == [*[(False, 1)] * 6, *[(False, 2)] * 6, *[(True, 1)] * 2, *[(True, 2)] * 2]
    eager, engine = (next(row for row in json.loads(result.stdout.splitlines()[-1])["rows"] if name in row["name"])
                     for name in ("eager", "the engine"))  # fmt: skip
    assert (eager["timed_s"], eager["audio_s"], eager["steps"]) == (0.2, 0.2, 13)
    assert (engine["timed_s"], engine["audio_s"], engine["steps"]) == (0.5, 0.5, 28)
    assert "| transformers generate, eager | 1 | 0.2 |" in result.stdout
    assert f"| 0.5 | {engine['speed']:.2f} | {engine['speed'] / eager['speed']:.2f}x |" in result.stdout


def test_a_row_is_not_run_again_when_its_time_is_up(monkeypatch):
    times = iter([9.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(rows_module, "timed", lambda run, device: next(times))
    assert Setup("tiny", None, "cpu", repeats=5, budget_s=7.0).median_s(lambda: None) == 4.0
    assert list(times) == [4.0, 4.0]


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"run": {"title": "x"}}', '{"run": 5}'])
def test_a_file_without_measurements_is_named(tmp_path, content):
    file = tmp_path / "record.jsonl"
    file.write_text(content)
    result = CliRunner().invoke(music, ["--from", str(file)])
    assert result.exit_code == 1
    assert f"{file} holds no measurements" in result.output
    assert "Traceback" not in result.output


# Where little else than torch is installed, and on a GPU

MISSING = (
    *("click", "rich", "soundfile", "soxr", "librosa", "tritonclient", "faster_whisper", "peft", "chromadb"),
    *("av", "matplotlib", "lightning", "datasets"),
)
HIDING = f"""
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
PARITY = re.findall(r"tests/unit/\w+\.py", (ROOT / "ensemble/benchmarks/gpu.sh").read_text())


def bare(tmp_path, **more):
    """An environment without those packages: an import of one fails in every process that it starts."""
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", **more}


def test_the_benchmark_and_the_parity_tests_import_nothing_that_a_gpu_environment_lacks(tmp_path):
    assert len(PARITY) == 4
    program = f"""
import sys, pytest
try:
    import click
    sys.exit("nothing is hidden")
except ImportError:
    pass
from attune_ensemble.music.musicgen.benchmark.main import main
assert main(["--size", "tiny", "--device", "cpu", "--batch", "1", "--seconds", "0.1", "--repeats", "1"]) == 0
options = ["--noconftest", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=", "-q", "--collect-only"]
sys.exit(pytest.main([*options, *{PARITY!r}]))
"""
    path = os.pathsep.join(str(folder) for folder in (ROOT / "client", ROOT / "ensemble", tmp_path))
    environment = bare(tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1") | {"PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout[-2000:]
    assert "| the engine, float32, with the codec | 1 | 0.1 |" in ended.stdout


def rehearse(tmp_path, *stages, **more):
    script = ROOT / "ensemble" / "benchmarks" / "gpu.sh"
    settings = {"PYTHON": sys.executable, "DEVICE": "cpu", "OUT": str(tmp_path / "out"), **more}
    environment = bare(tmp_path, **settings)
    return subprocess.run(["sh", str(script), *stages], env=environment, capture_output=True, text=True, timeout=500)


def test_a_stage_that_fails_is_named_and_costs_no_other(tmp_path):
    ended = rehearse(tmp_path, "tiny-maby", "tiny-many", LIMIT_S="1")
    assert ended.returncode == 1
    assert "there is no stage tiny-maby" in ended.stderr
    assert "tiny-many ended with status 124" in ended.stdout
    assert "== failed: tiny-maby tiny-many" in ended.stdout


@pytest.mark.slow
def test_a_rehearsal_of_the_gpus_script_comes_to_its_end(tmp_path):
    ended = rehearse(tmp_path, "parity", "tiny", "tiny-many", "tiny-fidelity")
    assert ended.returncode == 0, ended.stdout
    assert "== all done" in ended.stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"parity.txt", "tiny.jsonl", "tiny.txt", "tiny-many.jsonl", "tiny-fidelity.txt"} <= written


def test_rows_of_a_gpu_alone_run_as_far_as_a_device_without_memory_goes(monkeypatch):
    """Graphs and their cost are measured on a GPU alone: here on `meta`, with a stand-in for what asks the driver."""
    for name, answer in {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(stepping, "CONTEXT_BUCKET", 512)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1 << 20)
    monkeypatch.setattr(rows_module, "Stepper", lambda state, **_: Stepper(state, graphs=RecordedGraphs()))
    monkeypatch.setattr(Setup, "parts", lambda self, numerics: parts)
    parts = parts_of(random_checkpoint("tiny"), Letters(), numerics="bfloat16", device="meta")
    setup = Setup("tiny", None, "meta", repeats=1)
    assert setup.plain == "bfloat16"
    groups = dict(part_groups(setup, 0.5))
    (captured,) = groups["CUDA graphs"]
    # 1, 2, 4, 8 and 16 rows; 512, 1024 and 1500 positions.
    assert captured.name == "capturing 15 CUDA graphs of 16 slots, which take 0 MiB"
    rows = dict(baseline_groups(setup, 2, 0.5, compiled=True))
    compiled = ["this project, torch.compile", "transformers, torch.compile"]
    assert list(rows) == ["transformers", "bfloat16 without graphs", *compiled]
    (uncaptured,) = rows["bfloat16 without graphs"]
    assert (uncaptured.name, uncaptured.steps) == ("static cache, fused, bfloat16", 28)
    # An engine cannot hear what has no memory.
    monkeypatch.setattr(rows_module, "_engine_rows", lambda *_: iter(()))
    (captured,) = dict(own_groups(setup, 2, 0.5))["bfloat16"]
    assert (captured.name, captured.steps) == ("CUDA graphs, bfloat16", 28)
