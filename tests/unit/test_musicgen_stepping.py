"""Steps by graphs: slots are rounded up to the rows of a graph, and what is too much leaves no trace.

    .venv/bin/python -m pytest tests/unit/test_musicgen_stepping.py

On the CPU, with graphs that replay on the same tensors as CUDA's do; on a GPU with CUDA's own.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen import engine as engine_module
from attune_ensemble.music.musicgen import stepping
from attune_ensemble.music.musicgen.codec import ChunkedCodec
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.engine import MusicGenEngine
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.state import BatchState, Piece
from attune_ensemble.music.musicgen.stepping import CudaGraphs, Stepper, row_counts
from tests.musicgen_models import FRAME_RATE, Letters, tiny_musicgen
from tests.recorded_graphs import RecordedGraphs

SLOTS, POSITIONS, KEPT, WIDTH = 5, 24, 10, 16
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def decoder(device):
    return Decoder(tiny_musicgen().decoder.to(device), max_positions=POSITIONS)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(stepping, "CONTEXT_BUCKET", 8)


def graphs_of(device):
    return RecordedGraphs() if device == "cpu" else CudaGraphs()


def filled(decoder):
    """A state whose slots are all at the beginning of a piece, each of its own kind."""
    state = BatchState(decoder, SLOTS, POSITIONS, 8)
    device = state.position.device
    for slot in range(SLOTS):
        sampling = SamplingSettings(temperature=0.3 * slot, top_k=3 * slot, guidance=1.0 + slot)
        text = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(slot)).to(device)
        state.begin(slot, Piece(200, slot, sampling), text)
    return state


def traces(state, first=0):
    """Copies of all that a later step may read of the slots from `first` on."""
    return [
        state.history[first:, :, : POSITIONS + 1].clone(),
        state.cache.music[:, first:, :, :, :, :POSITIONS].clone(),
        *(getattr(state, name)[first:].clone() for name in ("position", "dropped", "frames", "seed", "top_k")),
        *(getattr(state, name)[first:].clone() for name in ("temperature", "top_p", "guidance")),
        *(value[:, first:].clone() for value in (state.cache.text, state.cache.text_mask[None])),
    ]


def test_rows_double_up_to_the_slots():
    assert [row_counts(slots) for slots in (1, 2, 3, 8, 12, 16)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 12),
        (1, 2, 4, 8, 16),
    ]


def test_everything_is_captured_before_the_first_step(decoder):
    state, graphs = filled(decoder), RecordedGraphs()
    stepper, before = Stepper(state, graphs=graphs), traces(state)
    # 1, 2, 4 and 5 rows; 8, 16 and 24 positions.
    assert stepper.prepare() == graphs.captured == 12
    assert all(torch.equal(one, other) for one, other in zip(before, traces(state), strict=True))
    with torch.inference_mode():
        for used in range(1, POSITIONS + 1):
            stepper.step(1 + used % SLOTS, used)
    assert (graphs.captured, graphs.replayed) == (12, POSITIONS)


def test_a_benchmark_captures_what_it_needs(decoder):
    stepper = Stepper(filled(decoder), graphs=RecordedGraphs())
    assert stepper.prepare([3]) == 3
    assert stepper.prepare([3]) == 3


MOVES = st.one_of(
    st.tuples(st.just("step"), st.integers(1, SLOTS)),
    st.tuples(st.just("step"), st.integers(1, SLOTS)),
    st.tuples(st.just("swap"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("begin"), st.integers(0, SLOTS - 1)),
)


@settings(max_examples=25, deadline=None)
@given(moves=st.lists(MOVES, min_size=5, max_size=60))
@torch.inference_mode()
def test_rounding_up_changes_nothing_in_any_order_of_steps_swaps_and_beginnings(decoder, device, moves):
    plain, rounded = filled(decoder), filled(decoder)
    steppers = Stepper(plain, graphs=False), Stepper(rounded, graphs=graphs_of(device))
    steppers[1].prepare()
    at = [0] * SLOTS
    for name, *which in moves:
        if name == "step":
            (count,) = which
            for slot in range(count):
                if at[slot] == POSITIONS:
                    at[slot] = KEPT
                    for state in (plain, rounded):
                        state.slide(slot, POSITIONS, POSITIONS - KEPT)
            waiting = traces(rounded, count)
            for stepper in steppers:
                stepper.step(count, max(at[:count]) + 1)
            # Not a bit of a slot that waits may change.
            assert all(torch.equal(one, other) for one, other in zip(waiting, traces(rounded, count), strict=True))
            at[:count] = [position + 1 for position in at[:count]]
        elif name == "swap":
            first, second = which
            for state in (plain, rounded):
                state.swap(first, second, min(POSITIONS, max(at[first], at[second]) + 1))
            at[first], at[second] = at[second], at[first]
        else:
            (slot,) = which
            for state in (plain, rounded):
                state.begin(slot, Piece(100, 7, SamplingSettings()), torch.ones(2, WIDTH, device=device))
            at[slot] = 0
    for one, other in zip(traces(plain), traces(rounded), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert rounded.position.tolist() == at
    assert torch.equal(plain.history[..., : POSITIONS + 1], rounded.history[..., : POSITIONS + 1])


@torch.inference_mode()
def test_a_slot_that_waits_at_the_end_of_its_window_is_left_alone(decoder, device):
    """It stands behind the last position that can be written: a row of a graph must not read or write there."""
    state = filled(decoder)
    stepper = Stepper(state, graphs=graphs_of(device))
    stepper.prepare()
    for used in range(1, POSITIONS + 1):
        state.step(SLOTS, used)
    for slot in range(3):
        state.slide(slot, POSITIONS, POSITIONS - KEPT)
    waiting = traces(state, 3)
    assert state.position[3:].tolist() == [POSITIONS, POSITIONS]
    stepper.step(3, KEPT + 1)  # a graph of four rows
    assert all(torch.equal(one, other) for one, other in zip(waiting, traces(state, 3), strict=True))
    assert state.position.tolist() == [KEPT + 1] * 3 + [POSITIONS] * 2


# The whole engine

SETTINGS = EngineSettings(slots=3, window_s=1.5, kept_s=0.25, first_chunk_s=0.1, longest_chunk_s=0.4, ahead_s=0.5)
REQUESTS = [
    Generation(prompt, frames / FRAME_RATE, seed, SamplingSettings(guidance=guidance))
    for seed, (prompt, frames, guidance) in enumerate(
        [("abc", 20, 3.0), ("hello", 150, 1.0), ("", 75, 4.0), ("x", 7, 3.0)]
    )
]


def engine_of(decoder, device):
    model = tiny_musicgen().to(device)
    projection = getattr(model, "enc_to_dec_proj", None)
    conditioner = Conditioner(model.text_encoder, projection, Letters(), max_tokens=64)
    return MusicGenEngine(decoder, ChunkedCodec(model.audio_encoder, 1), conditioner, SETTINGS)


def test_an_engine_on_graphs_plays_what_one_without_does_and_captures_nothing_while_it_plays(
    decoder, device, monkeypatch
):
    graphs = graphs_of(device)

    def played():
        engine = engine_of(decoder, device)
        captured = graphs.captured if device == "cpu" else 0
        streams = [engine.submit(request) for request in REQUESTS + REQUESTS[::-1]]
        music = [np.concatenate(list(stream)) for stream in streams]
        engine.close()
        assert device != "cpu" or graphs.captured == captured
        return music

    monkeypatch.setattr(engine_module, "Stepper", partial(Stepper, graphs=False))
    expected = played()
    monkeypatch.setattr(engine_module, "Stepper", partial(Stepper, graphs=graphs))
    found = played()
    assert device != "cpu" or graphs.replayed > 100
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@ON_GPU
def test_a_gpu_steps_by_graphs_unless_told_otherwise():
    decoder = Decoder(tiny_musicgen().decoder.to("cuda"))
    assert Stepper(filled(decoder)).prepare() > 0
    assert Stepper(filled(decoder), graphs=False).prepare() == 0
