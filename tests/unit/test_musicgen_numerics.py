"""Numerics of MusicGen's decoder: layers in which no row depends on its neighbours, and names that are refused.

.venv/bin/pytest tests/unit/test_musicgen_numerics.py
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attune_ensemble.music.musicgen import loading
from attune_ensemble.music.musicgen.linear import Int8Linear, OneDnnLinear
from attune_ensemble.music.musicgen.loading import CheckpointError, as_served, load_checkpoint, numerics_on
from attune_ensemble.music.musicgen.music_engine import load_engine
from tests.musicgen_models import save_tiny_musicgen

SHAPES = [(16, 48), (64, 16), (1024, 1024), (4096, 1024)]


def linear(inputs, outputs, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("kind", "dtype"), [(Int8Linear, torch.float32), (OneDnnLinear, torch.float32), (OneDnnLinear, torch.bfloat16)]
)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_gives_the_same_bits_alone_and_beside_others(kind, dtype, inputs, outputs, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            layer, rows = kind(linear(inputs, outputs, dtype)), torch.randn(34, inputs).to(dtype)
            rows[3] *= 100  # it sets nobody's scale but its own
            together = layer(rows)
            for first, count in [(0, 1), (3, 1), (33, 1), (2, 2), (5, 3), (1, 8), (7, 16), (0, 33)]:
                assert torch.equal(layer(rows[first : first + count]), together[first : first + count])
            assert torch.equal(layer(rows.view(17, 2, inputs)), together.view(17, 2, outputs))
            assert torch.equal(layer(rows[:1][None]), together[:1][None])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("levels", "error"), [(127, 0.012), (63, 0.02)])
def test_eight_bits_are_near_the_plain_layer(levels, error):
    plain = linear(1024, 256)
    rows = torch.randn(8, 1024)
    expected, made = plain(rows).detach(), Int8Linear(plain, levels)(rows)
    assert float((made - expected).norm() / expected.norm()) < error


def test_eight_bits_are_the_arithmetic_in_whole_numbers():
    plain = linear(64, 32)
    rows = torch.randn(5, 64)
    scale, largest = plain.weight.abs().amax(1), rows.abs().amax(1, keepdim=True)
    weights = (plain.weight / scale[:, None] * 127).round().double()
    inputs = (rows / largest * 127).round().double()
    expected = inputs @ weights.T / 127**2 * scale * largest
    assert torch.allclose(Int8Linear(plain, 127)(rows).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_one_and_what_is_no_number_stays_in_its_row():
    rows = torch.randn(4, 64)
    rows[1] = 0
    rows[2, 5] = torch.nan
    made = Int8Linear(linear(64, 16))(rows)
    assert not made[1].any()
    assert made[2].isnan().all()
    assert made[[0, 3]].isfinite().all()


def test_an_output_without_weights_is_nothing():
    plain = linear(64, 16)
    plain.weight.data[3] = 0
    made = Int8Linear(plain)(torch.randn(4, 64))
    assert not made[:, 3].any()
    assert made.isfinite().all()


@pytest.mark.parametrize(
    ("device", "name", "numerics"),
    [
        ("cpu", "", "int8"),
        ("cuda", "", "bfloat16"),
        ("cuda:1", "float16", "float16"),
        ("cpu", "bfloat16", "bfloat16"),
    ],
)
def test_a_device_offers_numerics(device, name, numerics):
    assert numerics_on(device, name) == numerics


@pytest.mark.parametrize(
    ("device", "name", "message"),
    [
        ("cpu", "fp16", "numerics must be one of int8, float32, bfloat16 on cpu; got 'fp16'"),
        ("cpu", "float16", "int8, float32, bfloat16 on cpu; got 'float16'"),
        ("cuda", "int8", "bfloat16, float16, float32 on cuda; got 'int8'"),
    ],
)
def test_others_are_refused_with_those_that_are_offered(tmp_path, device, name, message):
    with pytest.raises(CheckpointError, match=message):
        load_engine(tmp_path, device, name, slots=1, queue=1)  # before anything is loaded


def test_a_machine_without_the_kernels_is_told(monkeypatch):
    monkeypatch.setattr(loading, "is_int8_available", lambda: False)
    with pytest.raises(CheckpointError, match="kernels for x86"):
        as_served(nn.Sequential(linear(4, 4)), "int8")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = save_tiny_musicgen(tmp_path)
    model.decoder.lm_heads[1].weight.data[3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no finite numbers: decoder\.lm_heads\.1\.weight"):
        load_checkpoint(tmp_path)
