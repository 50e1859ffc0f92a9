"""MusicGen on a device that is not the CPU: every operation on torch's `meta` device, which needs no GPU.

    .venv/bin/python -m pytest tests/unit/test_musicgen_device.py

An operation on a tensor of the CPU beside one of `meta` raises as it would on a GPU. What torch lets pass, or what
would hold a GPU up (an index or a value that is copied from the host), `HostWatch` finds.
"""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.devices import exact_convolutions, on_device
from attune_ensemble.music.musicgen.loading import parts_of
from attune_ensemble.music.musicgen.sampling import choose
from attune_ensemble.music.musicgen.state import BatchState, Piece
from tests.host_watch import META, HostWatch
from tests.musicgen_models import Letters, tiny_musicgen

WIDTH = 16


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
        state.run(1)
        state.step_rows(2, 16)
    assert watch.seen > 100


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
        with HostWatch(dimensions=0):
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


def test_a_device_is_the_threads_own(monkeypatch):
    """A new thread's current GPU is the first one, whatever the thread that made it computes on."""
    entered = []

    @contextlib.contextmanager
    def current(device):
        entered.append((threading.current_thread().name, device.index))
        yield

    monkeypatch.setattr("torch.cuda.device", current)
    second = torch.device("cuda:1")
    thread = threading.Thread(target=on_device(second, lambda number: entered.append(number)), args=(5,), name="music")
    thread.start()
    thread.join()
    assert entered == [("music", 1), 5]
    assert on_device(torch.device("cpu"), len) is len


def test_convolutions_are_exact_while_anybody_asks_for_it(parts, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with exact_convolutions():
        with exact_convolutions():
            assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32

    seen, upsample = [], parts.codec.upsample

    def watched(hidden):
        seen.append((hidden.dtype, torch.backends.cudnn.allow_tf32))
        return upsample(hidden)

    monkeypatch.setattr(parts.codec, "upsample", watched)
    codes = torch.zeros(parts.decoder.shape.codebooks, 9, dtype=torch.long, device=META)
    parts.codec.stream().advance(codes, final=True)
    assert seen == [(torch.float32, False)]
    assert torch.backends.cudnn.allow_tf32


def test_text_and_guidance_are_in_float32_whatever_the_decoder_is(parts, state):
    assert {parameter.dtype for parameter in parts.conditioner._encoder.parameters()} == {torch.float32}
    tokens = torch.zeros(2, state.pattern.num_codebooks, dtype=torch.long, device=META)
    with torch.inference_mode():
        logits = parts.decoder.step(state.cache, tokens, state.position[:2], 8, state.guidance[:2])
    assert logits.dtype == torch.float32


def test_a_prompt_that_overflows_float16_is_heard():
    """T5's feed-forward layers reach 10^5 and more with real weights; float16 ends at 65,504."""

    def heard(dtype):
        model = tiny_musicgen()
        for block in model.text_encoder.encoder.block:
            block.layer[-1].DenseReluDense.wo.weight.data.mul_(1e5)
        projection = getattr(model, "enc_to_dec_proj", None)
        conditioner = Conditioner(model.text_encoder, projection, Letters(), max_tokens=9, dtype=dtype)
        return conditioner.states("abc", WIDTH)

    assert heard(torch.float16).dtype == torch.float16
    torch.testing.assert_close(heard(torch.float16).float(), heard(torch.float32), rtol=1e-3, atol=1e-3)


def test_guidance_keeps_small_differences_of_large_logits():
    """In bfloat16, 100 and 100.25 are one number, and guidance would find no difference."""
    logits = torch.tensor([[[[100.0, 100.5]], [[100.0, 100.0]]]], dtype=torch.bfloat16)  # [1, 2, 1, 2]
    guided = Decoder._guided(logits, torch.tensor([3.3]))
    torch.testing.assert_close(guided, torch.tensor([[[100.0, 101.65]]]))


def test_the_watch_sees_what_torch_lets_pass():
    tensor = torch.zeros(3, 2, device=META)
    for touch in (
        lambda: tensor[torch.tensor([0, 1])],
        lambda: tensor.copy_(torch.zeros(3, 2)),
        lambda: torch.arange(3),
    ):
        with pytest.raises(AssertionError, match="on the CPU"), HostWatch():
            touch()
