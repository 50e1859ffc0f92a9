"""MusicGen's kernels against the reference step: compiled on a GPU, in Triton's interpreter elsewhere.

.venv/bin/python -m pytest tests/unit/test_musicgen_fused.py
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen import fused
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.fused import fused_step, is_fusible
from attune_ensemble.music.musicgen.state import BatchState, Piece
from attune_ensemble.music.musicgen.stepping import Stepper
from tests.musicgen_models import tiny_musicgen

pytest.importorskip("triton", reason="needs the compiler Triton, which PyTorch for CUDA brings")
from attune_ensemble.music.musicgen.fused.step import FusedStep, Tuning

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
POSITIONS, SLOTS, MAX_TEXT = 24, 3, 8


@pytest.fixture(autouse=True, scope="module")
def numbers_of_one_element():
    """Since NumPy 2.4 an array of one element is no index any more; the interpreter still takes it for one."""
    if ON_GPU:
        yield
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    yield
    interpreter._patch_lang_tensor = patch


def test_without_a_c_compiler_the_kernels_cannot_be_used(monkeypatch, tmp_path):
    """As in an image that has none: what starts the kernels is compiled too."""
    programs = tmp_path / "bin"
    programs.mkdir()
    headers = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    assert not fused._has_compiler()
    (programs / "gcc").touch(mode=0o755)
    assert fused._has_compiler() == headers.is_file()
    monkeypatch.setattr(fused.sysconfig, "get_path", lambda *names: str(tmp_path))
    assert not fused._has_compiler(), "without Python's headers"


def decoder_of(channels=1):
    decoder = Decoder(tiny_musicgen(channels).decoder.to(DEVICE), max_positions=POSITIONS)
    # Norms of which every entry counts, as in a trained model.
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in decoder.modules() if isinstance(module, torch.nn.LayerNorm)):
        for part in (norm.weight, norm.bias):
            part.data += 0.1 * torch.randn(part.shape, generator=generator).to(DEVICE)
    return decoder


def filled(decoder):
    state = BatchState(decoder, SLOTS, POSITIONS, MAX_TEXT)
    for slot, sampling in enumerate(
        (
            SamplingSettings(temperature=0.0, guidance=3.0),
            SamplingSettings(temperature=0.8, top_k=5, top_p=0.7, guidance=1.0),
            SamplingSettings(temperature=1.2, top_k=0, top_p=0.9, guidance=2.0),
        )
    ):
        text = torch.randn(2 + 3 * slot, decoder.shape.width, generator=torch.Generator().manual_seed(slot))
        state.begin(slot, Piece(30, slot, sampling), text.to(DEVICE))
    return state


def assert_equal(one, other):
    assert torch.equal(one.position, other.position)
    assert torch.equal(one.history[..., : POSITIONS + 1], other.history[..., : POSITIONS + 1])
    torch.testing.assert_close(
        one.cache.music[..., :POSITIONS, :], other.cache.music[..., :POSITIONS, :], rtol=0, atol=1e-4
    )


@torch.inference_mode()
def test_folded_norms_change_nothing():
    plain, folded = decoder_of(), decoder_of()
    folded.fold_norms()
    folded.fold_norms()
    states = filled(plain), filled(folded)
    for used in range(1, 9):
        for state in states:
            state.step(SLOTS, used)
    assert_equal(*states)


@pytest.mark.parametrize(
    ("channels", "tuning"),
    [
        # Everything without tensor cores, attention in several parts, weights partly read behind the wait.
        (1, Tuning(few=8, few_block=8, held=1, overlap=ON_GPU)),
        # As served: the text's rows are few, the music's are not.
        (2, Tuning(few=4, block=16, overlap=ON_GPU)),
        (1, Tuning(few=0, block=16, overlap=False)),
    ],
    ids=["few", "mixed", "many"],
)
@torch.inference_mode()
def test_a_fused_step_is_the_reference_step(channels, tuning):
    decoder = decoder_of(channels)
    decoder.fold_norms()
    reference, fused = filled(decoder), filled(decoder)
    step = FusedStep(fused, tuning)
    # Ages differ, one slot waits at times, and the context crosses a block of 8 positions.
    for state, move in ((reference, reference.step_rows), (fused, step.step_rows)):
        for running in (1, 1, 1, 3, 2, 3):
            state.run(running)
            move(SLOTS, 16)
        state.position[:] = torch.tensor([9, 4, 3], device=DEVICE)  # as if they had come so far
        for running in (2, 3):
            state.run(running)
            move(SLOTS, 16)
    assert_equal(reference, fused)


@torch.inference_mode()
def test_a_slot_that_waits_is_not_touched():
    decoder = decoder_of()
    decoder.fold_norms()
    state = filled(decoder)
    step = FusedStep(state, Tuning(overlap=ON_GPU))
    state.run(1)
    before = state.history[1:].clone(), state.cache.music[:, 1:].clone()
    step.step_rows(SLOTS, 8)
    assert torch.equal(state.history[1:], before[0])
    assert torch.equal(state.cache.music[:, 1:], before[1])
    assert state.position.tolist() == [1, 0, 0]


def test_there_are_none_where_they_could_not_run():
    decoder = decoder_of()
    assert not is_fusible(decoder)  # its norms are not folded
    decoder.fold_norms()
    assert is_fusible(decoder) is ON_GPU
    state = filled(decoder)
    assert (fused_step(state) is not None) is ON_GPU
    assert Stepper(state, graphs=False).prepare() == 0


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@torch.inference_mode()
def test_graphs_of_the_kernels_are_graphs_of_the_reference():
    decoder = decoder_of()
    decoder.fold_norms()
    states = filled(decoder), filled(decoder)
    steppers = Stepper(states[0], fused=False), Stepper(states[1])
    for stepper in steppers:
        stepper.prepare()
        for index, count in enumerate((1, 3, 2, 2, 3, 1, 3)):
            stepper.step(count, index + 1)
    torch.cuda.synchronize()
    assert_equal(*states)
