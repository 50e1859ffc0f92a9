"""MusicGen on a device that is not the CPU: every operation on torch's `meta` device, which needs no GPU.

    .venv/bin/python -m pytest tests/unit/test_musicgen_device.py

An operation on a tensor of the CPU beside one of `meta` raises as it would on a GPU. What torch lets pass, or what
would hold a GPU up (an index or a value that is copied from the host), `HostWatch` finds.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attune_ensemble.music.sampling import SamplingSettings
from attune_ensemble.musicgen.loading import parts_of
from attune_ensemble.musicgen.sampling import choose
from attune_ensemble.musicgen.state import BatchState, Piece
from tests.musicgen_models import Letters, tiny_musicgen

META = torch.device("meta")
WIDTH = 16


class HostWatch(TorchDispatchMode):
    """Fails where an operation takes, or makes, a tensor on the CPU; of no dimension if `numbers` are allowed."""

    def __init__(self, *, numbers: bool = False) -> None:
        super().__init__()
        self.seen, self._numbers = 0, numbers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, made)):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu" and (value.ndim or not self._numbers):
                raise AssertionError(f"{func} touches a tensor {list(value.shape)} on the CPU")
        self.seen += 1
        return made


@pytest.fixture(
    scope="module", params=[(1, "float32"), (2, "bfloat16"), (1, "float16")], ids=lambda p: f"{p[0]}-{p[1]}"
)
def parts(request):
    channels, numerics = request.param
    return parts_of(tiny_musicgen(channels), Letters(), numerics=numerics, device="meta")


@pytest.fixture
def state(parts):
    state = BatchState(parts.decoder, 3, 40, 8)
    with torch.inference_mode(), HostWatch() as watch:
        for slot in range(3):
            text = torch.zeros(5, WIDTH, dtype=parts.decoder.embedding.weight.dtype, device=META)
            state.begin(slot, Piece(30, slot, SamplingSettings(guidance=1.0 + slot)), text)
    assert watch.seen
    return state


def test_the_finished_parts_lie_on_the_device(parts):
    for part in (parts.decoder, parts.codec.quantizer, parts.codec.first, parts.codec.lstm, parts.codec.rest):
        tensors = dict(part.named_parameters()) | dict(part.named_buffers())
        assert tensors
        for name, tensor in tensors.items():
            assert tensor.device == META, name


def test_everything_that_a_slot_holds_lies_on_the_device(state):
    held = [value for owner in (state, state.cache) for value in vars(owner).values() if torch.is_tensor(value)]
    assert len(held) >= 12
    assert {tensor.device for tensor in held} == {META}


@torch.inference_mode()
def test_a_step_touches_nothing_of_the_host(state):
    with HostWatch() as watch:
        state.step(2, 16)
    assert watch.seen > 50


@torch.inference_mode()
def test_slots_slide_and_swap_and_give_their_codes_on_the_device(state):
    with HostWatch():
        state.slide(1, 40, 12)
        state.swap(0, 2, 20)
        codes = state.codes(0, 2, 9)
    assert codes.device == META
    assert codes.shape == (state.pattern.num_codebooks, 7)


@torch.inference_mode()
def test_a_beginning_is_read_at_once_on_the_device(parts, state):
    with HostWatch() as watch:
        parts.decoder.prefill(state.cache, 1, state.history[1, :, :9])
    assert watch.seen > 20


def test_tokens_are_chosen_on_the_device():
    per_slot = [torch.ones(3, device=META) for _ in range(2)]
    whole = [torch.zeros(3, dtype=torch.long, device=META) for _ in range(3)]
    with HostWatch():
        tokens = choose(torch.zeros(3, 4, 32, device=META), per_slot[0], whole[0], per_slot[1], *whole[1:])
    assert (tokens.device, tokens.shape) == (META, (3, 4))


@pytest.mark.parametrize("sizes", [(30,), (1, 1, 7, 0, 12), (20, 0)])
def test_the_codec_runs_on_the_device_to_the_last_sample(parts, sizes):
    stream, heard = parts.codec.stream(), 0
    for index, size in enumerate(sizes):
        codes = torch.zeros(parts.decoder.shape.codebooks, size, dtype=torch.long, device=META)
        with HostWatch(numbers=True):
            samples = stream.advance(codes, final=index == len(sizes) - 1)
        assert samples.device == META
        assert samples.dtype == torch.float32
        heard += samples.shape[0]
    assert heard == sum(sizes) * parts.codec.samples_per_frame


@torch.inference_mode()
def test_a_prompt_is_encoded_on_the_device_in_the_decoders_numbers(parts):
    for prompt in ("abc", " "):
        states = parts.conditioner.states(prompt, WIDTH)
        assert states.device == META
        assert states.dtype == parts.decoder.embedding.weight.dtype


def test_the_watch_sees_what_torch_lets_pass():
    tensor = torch.zeros(3, 2, device=META)
    for touch in (
        lambda: tensor[torch.tensor([0, 1])],
        lambda: tensor.copy_(torch.zeros(3, 2)),
        lambda: torch.arange(3),
    ):
        with pytest.raises(AssertionError, match="on the CPU"), HostWatch():
            touch()
