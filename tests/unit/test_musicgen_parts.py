"""The parts of the MusicGen engine: delay pattern, sampling, chunked codec, conditioning, sliding window.

.venv/bin/pytest tests/unit/test_musicgen_parts.py
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.musicgen import sampling as sampling_module
from attune_ensemble.music.musicgen.codec import ChunkedCodec
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.loading import CheckpointError, numerics_on
from attune_ensemble.music.musicgen.music_engine import load_engine
from attune_ensemble.music.musicgen.sampling import choose, gumbel, uniform_noise
from attune_ensemble.music.musicgen.state import BatchState, Piece
from attune_ensemble.music.musicgen.statistics import METRICS
from attune_ensemble.music.registry import EngineOptions, create_engine
from tests.musicgen_models import PAD, Letters, save_tiny_musicgen, tiny_musicgen

# The delay pattern


@pytest.mark.parametrize(("channels", "codebooks"), [(1, 4), (2, 8)])
def test_the_pattern_is_that_of_transformers(channels, codebooks):
    model, frames = tiny_musicgen(channels), 6
    with torch.inference_mode():
        state = BatchState(Decoder(model.decoder), 1, 32, 8)
        state.begin(0, Piece(frames, 0, SamplingSettings()), torch.zeros(1, 16))
        steps = state.pattern.steps(frames)
        for position in range(steps):
            state.step(1, position + 1)
    start = torch.full((codebooks, 1), PAD)
    _, mask = model.decoder.build_delay_pattern_mask(start, PAD, max_length=1 + steps)
    assert torch.equal(state.history[0, :, : 1 + steps] != PAD, mask == -1)
    # Every codebook's frames stand in line again.
    codes = state.codes(0, 0, frames)
    assert codes.shape == (codebooks, frames)
    assert torch.equal(codes, state.history[0][:, : 1 + steps][mask == -1].view(codebooks, frames))


# Sampling


def chosen(logits, count=4000, **options):
    settings_ = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    logits = torch.tensor(logits).expand(count, 1, len(logits))
    values = (torch.full((count,), settings_[name]) for name in ("temperature", "top_k", "top_p"))
    return choose(logits, *values, torch.full((count,), 5), torch.arange(count))[:, 0]


def test_tokens_come_as_often_as_their_probability_says():
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = torch.bincount(chosen(probability.log().tolist(), count=20_000), minlength=4) / 20_000
    assert torch.allclose(counts, probability, atol=0.012)


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    logits = [0.0, 1.0, 0.5]
    assert (chosen(logits, temperature=0.0) == 1).all()
    shares = [(chosen(logits, temperature=value) == 1).float().mean() for value in (2.0, 1.0, 0.3)]
    assert shares[0] < shares[1] < shares[2]


def test_top_k_and_top_p_leave_out_the_rest():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert set(chosen(logits, top_k=2).tolist()) == {0, 1}
    assert set(chosen(logits, top_p=0.75).tolist()) == {0, 1, 2}
    assert set(chosen(logits, top_p=0.01).tolist()) == {0}
    # Of the two that top-k leaves, the first alone has 4/7 > .5 of what is left.
    assert set(chosen(logits, top_k=2, top_p=0.5).tolist()) == {0}


def test_noise_is_uniform_and_its_own_for_every_seed_position_and_codebook():
    noise = uniform_noise(torch.arange(6), torch.arange(6), 4, 2048)
    assert 0 < noise.min() < 1e-3
    assert 1 - 1e-3 < noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.005)
    assert noise.var() == pytest.approx(1 / 12, abs=0.002)
    flat = noise.flatten(0, 1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.1
    again = uniform_noise(torch.tensor([3]), torch.tensor([3]), 4, 2048)
    assert torch.equal(again[0], noise[3])


ENDS = [0, (1 << 63) - 1, -(1 << 63), -1]
"""Of 64 bits: the lowest and highest of either half."""


def test_the_ends_of_the_noise_are_numbers():
    ends = sampling_module._between_0_and_1(torch.tensor(ENDS))
    middle = 0.5**24
    assert ends.tolist() == [middle, 0.5 - middle, 0.5 + middle, 1 - middle]
    exact = gumbel(ends.double())
    assert torch.allclose(gumbel(ends).double(), exact, rtol=1e-5)
    assert exact.abs().max() < 17


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.5}, {"top_k": 2, "top_p": 0.3}], ids=str)
@pytest.mark.parametrize("temperature", [1e-9, 1.0, 10.0])
def test_what_is_left_out_wins_with_no_noise(monkeypatch, options, temperature):
    ends = [0.5**24, 1 - 0.5**24, 1.0]  # the last does not come, and still must not let a token in
    noise = torch.tensor(list(itertools.product(ends, repeat=4)))[:, None]  # [81, 1, 4], every combination
    monkeypatch.setattr(sampling_module, "uniform_noise", lambda *_: noise)
    logits = [0.0, 100.0, -3.4e38, 0.0]
    assert set(chosen(logits, count=len(noise), temperature=temperature, **options).tolist()) == {1}


def test_the_one_token_of_top_k_is_taken_where_another_had_infinite_noise():
    logits = torch.zeros(1, 4, 2048)
    logits[..., 7] = 100.0
    values = (torch.tensor([value]) for value in (1.0, 1, 1.0, 335, 0))
    assert choose(logits, *values).tolist() == [[7, 7, 7, 7]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 40), st.sampled_from([0.3, 0.9, 1.0]))
def test_a_neighbours_top_p_changes_no_choice(seed, top_k, top_p):
    """The likeliest tokens are found in another way where nobody has a top-p."""
    logits = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(seed)).round(decimals=1)  # with ties
    mine = [(1.0, top_k, 1.0, seed, 3), (0.7, 7, top_p, 5, 9)]
    together = choose(logits, *map(torch.tensor, zip(*mine, strict=True)))
    for row in range(2):
        alone = choose(logits[row : row + 1], *(torch.tensor([value]) for value in mine[row]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize(
    ("logits", "allowed"),
    [
        ([float("nan"), 0.0, float("nan"), float("nan")], {1}),
        ([0.0, float("inf"), 0.0, 0.0], {1}),
        ([float("-inf"), -3e38, float("-inf"), float("-inf")], {1}),
        ([float("nan")] * 4, {0, 1, 2, 3}),
    ],
    ids=["nan", "inf", "-inf", "nothing else"],
)
def test_what_is_no_number_is_not_preferred(logits, allowed, temperature):
    assert set(chosen(logits, count=64, temperature=temperature).tolist()) <= allowed


def test_top_p_of_1_leaves_every_token_though_sums_round(monkeypatch):
    logits = torch.linspace(-17.9, -18.1, 2048)[None, None].clone()
    logits[..., 0] = 0.0  # the sum of all before the last rounds to more than 1
    noise = torch.full((1, 1, 2048), 0.5**24)
    noise[..., -1] = 1 - 0.5**24
    monkeypatch.setattr(sampling_module, "uniform_noise", lambda *_: noise)
    values = (torch.tensor([value]) for value in (1.0, 0, 1.0, 0, 0))
    assert choose(logits, *values).tolist() == [[2047]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must lie between"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0.0}, "top_p must lie above 0"),
        ({"guidance": 0.5}, "guidance must lie between"),
    ],
)
def test_a_setting_out_of_range_is_named(options, message):
    with pytest.raises(InvalidOption, match=message):
        SamplingSettings(**options)


# The codec


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def codec(request):
    model = tiny_musicgen(request.param)
    frames = torch.randint(0, PAD, (4 * request.param, 90), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        sides = [
            model.audio_encoder.decode(frames[None, None, side :: request.param], [None]).audio_values[0]
            for side in range(request.param)
        ]
        return ChunkedCodec(model.audio_encoder, request.param), frames, torch.cat(sides).T.numpy()


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), max_size=12), frames=st.integers(1, 90))
def test_chunks_of_any_size_join_to_the_whole(codec, cuts, frames):
    chunked, codes, _ = codec
    codes = codes[:, :frames]
    expected = chunked.stream().push(codes, final=True)
    stream, edges = chunked.stream(), [0, *sorted(cut for cut in cuts if cut < frames), frames]
    pieces = [
        stream.push(codes[:, start:end], final=end == frames and index == len(edges) - 2)
        for index, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    assert np.abs(np.concatenate(pieces) - expected).max() < 1e-5


def test_the_whole_is_what_transformers_decodes(codec):
    chunked, codes, expected = codec
    assert np.abs(chunked.stream().push(codes, final=True) - expected).max() < 1e-5


def test_audio_comes_a_fixed_number_of_frames_behind(codec):
    chunked, codes, _ = codec
    stream, heard = chunked.stream(), 0
    for count in range(1, 91):
        heard += len(stream.push(codes[:, count - 1 : count]))
        assert heard == 4 * max(0, count - chunked.lookahead)


# Conditioning


def test_a_prompt_is_encoded_once(monkeypatch):
    model = tiny_musicgen()
    conditioner = Conditioner(
        model.text_encoder, getattr(model, "enc_to_dec_proj", None), Letters(), max_tokens=64, remembered=2
    )
    calls = []
    forward = model.text_encoder.forward
    monkeypatch.setattr(model.text_encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    first = conditioner.states("abc", 16)
    assert conditioner.states("abc", 16) is first
    assert len(calls) == 1
    conditioner.states("d", 16)
    conditioner.states("e", 16)
    conditioner.states("abc", 16)
    assert len(calls) == 4
    assert not conditioner.states(" ", 16).any()


# The sliding window


def test_a_slid_window_goes_on_as_if_it_had_begun_with_what_was_kept():
    decoder = Decoder(tiny_musicgen().decoder)
    sampling = SamplingSettings(temperature=0.0)
    text = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        state = BatchState(decoder, 1, 32, 8)
        state.begin(0, Piece(200, 0, sampling), text)
        for position in range(20):
            state.step(1, position + 1)
        kept = state.history[0, :, 8:21].clone()
        state.slide(0, 20, 8)
        for position in range(12, 20):
            state.step(1, position + 1)

        fresh = BatchState(decoder, 1, 32, 8)
        fresh.begin(0, Piece(200, 0, sampling), text)
        before = torch.arange(13)[None, :] < 1 + torch.arange(4)[:, None]
        fresh.history[0, :, :13] = torch.where(before, PAD, kept)
        fresh.position[0] = 0
        # Step by step through what was kept, putting its tokens back each time.
        for position in range(12):
            known = fresh.history[0, :, position + 1].clone()
            fresh.step(1, position + 1)
            fresh.history[0, :, position + 1] = known
        for position in range(12, 20):
            fresh.step(1, position + 1)
    assert torch.equal(state.history[0, :, :21], fresh.history[0, :, :21])
    assert int(state.dropped[0]) == 8


def test_compiled_layers_make_the_same_step():
    tokens = []
    for backend in (None, "aot_eager"):
        decoder = Decoder(tiny_musicgen().decoder)
        if backend is not None:
            decoder.compile_layers(backend)
        text = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            state = BatchState(decoder, 2, 32, 8)
            for slot in range(2):
                state.begin(slot, Piece(200, slot, SamplingSettings(guidance=1.0 + 2 * slot)), text)
            for position in range(20):
                state.step(2, 16 if position < 16 else 32)
        tokens.append(state.history)
    assert torch.equal(*tokens)


# The checkpoint's folder, and what the service makes of it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "musicgen"
    save_tiny_musicgen(folder)
    return folder


@pytest.fixture(scope="module")
def served(checkpoint):
    return load_engine(checkpoint, "cpu", "float32", slots=1, queue=1)


def asked(prompt="calm", duration_s=1.0, **more):
    return MusicRequest(prompt, MusicSpec(72.0, "dorian", "D", ("piano",), "mp"), duration_s, seed=3, **more)


def test_a_checkpoint_plays_in_chunks_of_the_asked_length(served):
    chunks = [chunk for chunk in served.generate(asked(), chunk_s=0.5) if len(chunk)]
    assert all(chunk.shape[0] <= 80 and chunk.shape[1] == 1 for chunk in chunks)
    assert sum(map(len, chunks)) == 160
    assert served.metrics()["musicgen_finished_requests"] >= 1
    assert set(served.metrics()) == set(METRICS)


def test_sampling_is_the_requests_own(served):
    def play(**more):
        return np.concatenate(list(served.generate(asked(**more), chunk_s=1.0)))

    assert np.array_equal(play(), play(sampling=SamplingSettings()))
    assert not np.array_equal(play(), play(sampling=SamplingSettings(temperature=0.0)))


def test_a_listener_in_the_queue_is_called_back_until_its_turn(served):
    first = served.generate(asked(duration_s=600.0), chunk_s=1.0)
    assert any(len(chunk) for chunk in itertools.islice(first, 100))
    second = served.generate(asked(), chunk_s=1.0)
    assert [len(next(second)) for _ in range(3)] == [0, 0, 0]
    first.close()
    assert sum(map(len, second)) == 160


def test_a_prompt_that_is_too_long_says_how_long_it_may_be(served):
    with pytest.raises(InvalidOption, match=r"prompt has 300 tokens; it may have 256"):
        next(served.generate(asked("a" * 300), chunk_s=1.0))


def test_a_program_may_end_while_music_plays(checkpoint):
    program = f"""
from pathlib import Path
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.registry import EngineOptions, create_engine
from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.music.musicgen.music_engine import load_engine

engine = load_engine(Path({str(checkpoint)!r}), "cpu", "float32", slots=1, queue=1)
music = engine.generate(MusicRequest("calm", MusicSpec(72.0, "dorian", "D", ("piano",), "mp"), 600.0, seed=3), 1.0)
while not len(next(music)):
    pass
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_workers_stay_awake_where_musicgen_plays(checkpoint, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    create_engine("composer", EngineOptions(musicgen=checkpoint))
    assert "OMP_WAIT_POLICY" in os.environ
    create_engine("musicgen", EngineOptions(musicgen=checkpoint))
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("device", "numerics", "message"),
    [
        ("cpu", "fp16", "one of int8, float32, bfloat16 on cpu; got 'fp16'"),
        ("cuda", "fp16", "one of bfloat16, float16, float32 on cuda; got 'fp16'"),
        ("cuda:1", "int8", "one of bfloat16, float16, float32 on cuda:1; got 'int8'"),
    ],
)
def test_numerics_that_there_are_not_are_named_before_anything_is_loaded(tmp_path, device, numerics, message):
    with pytest.raises(CheckpointError, match=message):
        load_engine(tmp_path, device, numerics, slots=1, queue=1)


@pytest.mark.parametrize(("device", "usual"), [("cpu", "int8"), ("cuda", "bfloat16"), ("cuda:1", "bfloat16")])
def test_every_device_has_its_usual_numerics(device, usual):
    assert numerics_on(device) == usual


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no MusicGen checkpoint"):
        load_engine(tmp_path, "cpu", "", slots=1, queue=1)
