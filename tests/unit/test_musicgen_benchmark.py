"""`attune bench music` on a tiny checkpoint: every row and every figure is there.

.venv/bin/pytest tests/unit/test_musicgen_benchmark.py
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from attune_ensemble.musicgen.benchmark.command import music
from tests.musicgen_models import save_tiny_musicgen

ROWS = [
    "transformers generate, eager",
    "transformers generate, static cache",
    "static cache, fused, float32",
    "the engine, float32, with the codec",
    "the same, 4 requests of two lengths",
    "static cache, fused, int8",
    "the engine, int8, with the codec",
    "the same, 4 requests of two lengths",
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
