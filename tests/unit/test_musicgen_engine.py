"""The MusicGen engine against transformers' generate, and under random schedules of requests.

.venv/bin/pytest tests/unit/test_musicgen_engine.py
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

from attune_client.protocol.errors import (
    InvalidOption,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
)
from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen import threads
from attune_ensemble.music.musicgen.codec import ChunkedCodec, CodecStream
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder, KeyValueCache
from attune_ensemble.music.musicgen.decoding import CodecRunner
from attune_ensemble.music.musicgen.engine import MusicGenEngine
from attune_ensemble.music.musicgen.failures import EngineBusy
from attune_ensemble.music.musicgen.loading import as_served, engine_of, parts_of
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.settings import EngineSettings
from tests.musicgen_models import FRAME_RATE, Letters, generated_by_transformers, tiny_musicgen

PROMPTS = ["abc", "a longer prompt", "x"]
GREEDY = SamplingSettings(temperature=0.0)
SETTINGS = EngineSettings(slots=2, window_s=1.5, kept_s=1.0, first_chunk_s=0.1, longest_chunk_s=0.4)


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ATOL = 1e-5
"""Of samples. One different token would be far above it; a GPU may sum in another order beside others."""


@pytest.fixture(
    scope="module",
    params=[(1, "cpu"), (2, "cpu"), pytest.param((1, "cuda"), marks=ON_GPU), pytest.param((2, "cuda"), marks=ON_GPU)],
    ids=["mono", "stereo", "mono-gpu", "stereo-gpu"],
)
def model(request):
    channels, device = request.param
    torch.backends.cudnn.allow_tf32 = False
    return tiny_musicgen(channels).to(device)


@pytest.fixture(scope="module")
def parts(model):
    channels = model.decoder.config.audio_channels
    projection = getattr(model, "enc_to_dec_proj", None)
    return (
        Decoder(model.decoder),
        ChunkedCodec(model.audio_encoder, channels),
        Conditioner(model.text_encoder, projection, Letters(), max_tokens=64),
    )


@pytest.fixture
def engine(parts):
    engine = MusicGenEngine(*parts, SETTINGS)
    yield engine
    engine.close()


def whole(stream):
    return np.concatenate(list(stream))


def generation(prompt="abc", frames=20, **more):
    return Generation(prompt, frames / FRAME_RATE, **more)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_music_is_that_of_transformers(model, engine, guidance):
    expected = generated_by_transformers(model, PROMPTS, 20, guidance)
    sampling = SamplingSettings(temperature=0.0, guidance=guidance)
    streams = [engine.submit(generation(prompt, sampling=sampling)) for prompt in PROMPTS]
    for stream, audio in zip(streams, expected, strict=True):
        assert audio.std() > 0.01
        assert np.abs(whole(stream) - audio).max() < ATOL


def test_no_text_is_the_unconditional_model(model, engine):
    inputs = model.get_unconditional_inputs(num_samples=1)
    delay = model.decoder.num_codebooks // model.decoder.config.audio_channels - 1
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=20 + delay)[0].T.cpu().numpy()
    made = whole(engine.submit(generation("", sampling=SamplingSettings(temperature=0.0, guidance=1.0))))
    assert np.abs(made - expected).max() < ATOL


def test_a_seed_gives_the_same_music_and_another_seed_another(engine):
    first, again, other = (whole(engine.submit(generation(seed=seed))) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_warming_up_leaves_no_trace(engine):
    request = Generation("abc", 0.5, seed=7)
    before = np.concatenate(list(engine.submit(request)))
    engine.warm_up()
    counted = engine.statistics()
    assert (counted.finished, counted.frames, counted.first_audio_s) == (0, 0, 0.0)
    assert np.array_equal(np.concatenate(list(engine.submit(request))), before)
    assert engine.statistics().finished == 1


def test_one_thread_computes(parts, engine, monkeypatch):
    encode, push = parts[2].encode, CodecStream.push
    names = []
    monkeypatch.setattr(
        parts[2], "encode", lambda prompt: names.append(threading.current_thread().name) or encode(prompt)
    )
    on_cpu = engine._state.position.device.type == "cpu"

    def pushed(stream, codes, *, final=False):
        names.append(threading.current_thread().name)
        return push(stream, codes, final=final)

    if on_cpu:
        monkeypatch.setattr(CodecStream, "push", pushed)
    assert len(whole(engine.submit(generation("never heard before")))) == 80
    assert set(names) == {"musicgen-decoder"}
    assert len(names) > 1 or not on_cpu


def test_chunks_grow_from_the_first_one(engine):
    stream = engine.submit(generation(frames=56))
    lengths = [len(chunk) for chunk in stream]
    assert lengths[0] >= 0.1 * 160
    assert lengths[0] < 0.2 * 160
    assert sum(lengths) == 56 * 4
    assert max(lengths) <= 0.4 * 160 + 4


REQUESTS = [
    generation(prompt, frames, seed=seed, sampling=sampling)
    for seed, (prompt, frames, sampling) in enumerate(
        [
            ("abc", 20, SamplingSettings()),
            ("hello", 7, SamplingSettings(top_k=5, guidance=1.0)),
            ("x", 33, SamplingSettings(temperature=0.7, top_p=0.8)),
            ("abc", 75, GREEDY),  # longer than a window
            ("", 12, SamplingSettings(temperature=1.3)),
        ]
    )
]


@pytest.fixture(
    scope="module",
    params=[
        ("float32", 1, "cpu"),
        ("float32", 2, "cpu"),
        ("bfloat16", 1, "cpu"),
        ("int8", 1, "cpu"),
        ("int8", 2, "cpu"),
        pytest.param(("float32", 1, "cuda"), marks=ON_GPU),
        pytest.param(("float32", 2, "cuda"), marks=ON_GPU),
    ],
    ids=lambda param: "-".join(map(str, param)),
)
def offered(request):
    """The engine's parts in every numerics, as they are served; and what each request gives when nobody else is there.

    Half precision on a GPU is left out: there, sums may round otherwise beside others.
    """
    numerics, channels, device = request.param
    torch.backends.cudnn.allow_tf32 = False
    parts = parts_of(tiny_musicgen(channels), Letters(), numerics=numerics, device=device, max_prompt_tokens=64)
    engine = engine_of(parts, SETTINGS)
    codes = recorded(engine)
    streams = [(stream := engine.submit(request), whole(stream))[0] for request in REQUESTS]
    engine.close()
    return parts, [torch.cat(codes[id(stream)], dim=1) for stream in streams]


def recorded(engine):
    """The codes that an engine will have given to the codec, by the identity of the stream, in pieces."""
    codes, submit = defaultdict(list), engine._runner.submit

    def record(work):
        codes[id(work.stream)].append(work.codes.cpu())
        submit(work)

    engine._runner.submit = record
    return codes


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(REQUESTS) - 1), st.integers(0, 3), st.booleans()), min_size=2, max_size=7))
def test_music_does_not_depend_on_who_else_is_there_nor_on_when_it_joined(offered, schedule):
    parts, alone = offered
    engine = engine_of(parts, SETTINGS)
    codes, streams, listeners = recorded(engine), [], []

    def listen(stream, cancelled):
        chunks = iter(stream)
        assert len(next(chunks) if cancelled else np.concatenate(list(chunks)))
        chunks.close()

    for key, (index, wait_for, cancelled) in enumerate(schedule):
        streams.append(engine.submit(REQUESTS[index]))
        listener = threading.Thread(target=listen, args=(streams[-1], cancelled))
        listener.start()
        listeners.append(listener)
        if wait_for:
            listeners[max(0, key - wait_for)].join()
    for listener in listeners:
        listener.join(timeout=60)
        assert not listener.is_alive()
    engine.close()
    for (index, _, cancelled), stream in zip(schedule, streams, strict=True):
        made = torch.cat(codes[id(stream)], dim=1)
        assert torch.equal(made, alone[index][:, : made.shape[1]])
        assert cancelled or made.shape == alone[index].shape
    assert engine.statistics().failed == 0


# Plans whose prompt changes on the way


TURN_S, PIECE_FRAMES = 0.9, 75  # longer than a window


def made(engine, *requests):
    """The codes [K, frames] of requests that play at once."""
    codes = recorded(engine)
    streams = [engine.submit(request) for request in requests]
    for stream in streams:
        whole(stream)
    return [torch.cat(codes[id(stream)], dim=1) for stream in streams]


def turning(first, then, **more):
    return generation(first, PIECE_FRAMES, later=lambda time_s: first if time_s < TURN_S else then, **more)


def first_difference(one, other):
    return int((one != other).any(dim=0).nonzero()[0])


def test_a_plan_that_stays_changes_nothing(engine):
    constant, planned = made(engine, generation("abc", PIECE_FRAMES, seed=3), turning("abc", "abc", seed=3))
    assert torch.equal(constant, planned)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings()])
def test_the_music_follows_a_prompt_that_changes_and_goes_on(engine, sampling):
    (constant,) = made(engine, generation("abc", PIECE_FRAMES, seed=3, sampling=sampling))
    (turned,) = made(engine, turning("abc", "hello, world", seed=3, sampling=sampling))
    (other,) = made(engine, generation("hello, world", PIECE_FRAMES, seed=3, sampling=sampling))
    assert turned.shape == constant.shape
    turn, delay = round(TURN_S * FRAME_RATE), engine._state.pattern.longest_delay
    longest_chunk = round(SETTINGS.longest_chunk_s * FRAME_RATE)
    assert turn - delay <= first_difference(constant, turned) <= turn + longest_chunk + 4
    assert not torch.equal(turned[:, turn:], other[:, turn:])  # it goes on from what was there


def test_who_plays_beside_a_prompt_that_changes_does_not_notice(offered):
    parts, alone = offered
    engine = engine_of(parts, SETTINGS)
    for index, request in enumerate(REQUESTS):
        _turned, beside = made(engine, turning("abc", "hello, world"), request)
        assert torch.equal(beside, alone[index])
    engine.close()


def test_a_window_that_slides_asks_the_plan_where_no_chunk_does(parts):
    """Nothing is sent before the first window is full: the prompt changes where it slides."""
    engine = MusicGenEngine(*parts, replace(SETTINGS, first_chunk_s=10.0))
    asked = []

    def later(time_s):
        asked.append(time_s)
        return "abc" if time_s < TURN_S else "hello, world"

    (constant,) = made(engine, generation("abc", PIECE_FRAMES, seed=3))
    (turned,) = made(engine, generation("abc", PIECE_FRAMES, seed=3, later=later))
    engine.close()
    window = round(SETTINGS.window_s * FRAME_RATE)
    assert asked == [pytest.approx(window / FRAME_RATE)]
    assert first_difference(constant, turned) >= window - engine._decoder.shape.codebooks


def broken(time_s):
    raise OSError("the plan is gone")


@pytest.mark.parametrize(
    ("later", "error"),
    [(lambda time_s: "abc" if time_s < TURN_S else "a" * 65, InvalidOption), (broken, ServerError)],
)
def test_a_plan_that_fails_ends_its_own_piece_alone(engine, later, error):
    (alone,) = made(engine, REQUESTS[2])
    codes = recorded(engine)
    failing, beside = engine.submit(generation(frames=PIECE_FRAMES, later=later)), engine.submit(REQUESTS[2])
    with pytest.raises(error) as caught:
        whole(failing)
    assert "gone" not in str(caught.value)
    whole(beside)
    assert torch.equal(torch.cat(codes[id(beside)], dim=1), alone)
    assert engine.statistics().failed == 1
    assert engine.healthy


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("numerics", ["float32", "bfloat16", "int8"])
def test_a_step_gives_a_slot_the_same_bits_wherever_and_beside_whomever_it_is(numerics, threads):
    """At the widths of a real layer, whose products take other ways than a tiny one's."""
    torch.manual_seed(0)
    config = MusicgenDecoderConfig(
        vocab_size=256, num_hidden_layers=1, hidden_size=1024, ffn_dim=4096, num_attention_heads=16, num_codebooks=2
    )
    config.pad_token_id = config.bos_token_id = 256
    dtype = torch.bfloat16 if numerics == "bfloat16" else torch.float32
    decoder = as_served(Decoder(MusicgenForCausalLM(config).to(dtype)), numerics)
    slots, before = 9, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            cache = KeyValueCache(decoder.shape, slots, 300, 32, dtype, torch.device("cpu"))
            cache.music.normal_()
            for slot in range(slots):
                decoder.set_text(cache, slot, torch.randn(1 + 3 * slot, 1024).to(dtype))
            position, tokens = torch.randint(0, 299, (slots,)), torch.randint(0, 256, (slots, 2))
            guidance = torch.full((slots,), 3.0)
            together = decoder.step(cache, tokens, position, 300, guidance)
            for count in (1, 2, 3, 5, 8):
                some = decoder.step(cache, tokens[:count], position[:count], 300, guidance[:count])
                assert torch.equal(some, together[:count])
            for first, second in [(0, 8), (3, 1), (0, 5)]:
                cache.swap(first, second, 300)
                for tensor in (tokens, position, together):
                    tensor[[first, second]] = tensor[[second, first]]
                assert torch.equal(decoder.step(cache, tokens, position, 300, guidance), together)
    finally:
        torch.set_num_threads(before)


def test_a_cancelled_request_frees_its_slot(engine):
    streams = [engine.submit(generation(frames=50_000)) for _ in range(2)]
    iterators = [iter(stream) for stream in streams]
    for iterator in iterators:
        next(iterator)
    waiting = engine.submit(generation(frames=8))
    iterators[0].close()
    assert len(whole(waiting)) == 32
    streams[1].cancel()
    with pytest.raises(RequestCancelled):
        list(iterators[1])


def test_a_full_queue_is_refused_and_a_deadline_ends_what_waits(parts):
    engine = MusicGenEngine(*parts, EngineSettings(slots=1, queue=1, window_s=1.5, kept_s=1.0))
    first = engine.submit(generation(frames=50_000))
    next(iter_first := iter(first))
    late = engine.submit(generation(deadline_s=0.05))
    with pytest.raises(EngineBusy, match="1 requests for music are waiting already"):
        engine.submit(generation())
    with pytest.raises(RequestTimeout, match="not finished in time"):
        list(late)
    iter_first.close()
    assert len(whole(engine.submit(generation(frames=8)))) == 32
    engine.close()
    with pytest.raises(EngineBusy, match="closing"):
        engine.submit(generation())


def test_a_slow_listener_stops_its_slot_and_nobody_else(parts):
    engine = MusicGenEngine(*parts, EngineSettings(slots=2, window_s=1.5, kept_s=1.0, ahead_s=1.0, longest_chunk_s=0.5))
    slow = engine.submit(generation(frames=400))
    while slow.buffered_s <= 1.0:
        threading.Event().wait(0.01)
    threading.Event().wait(0.2)
    assert slow.buffered_s < 2.5
    assert len(whole(engine.submit(generation(frames=40)))) == 160
    assert len(whole(slow)) == 1600
    engine.close()


@pytest.fixture
def stuck(monkeypatch):
    """What a thread calls that hangs until the event is set; a thread is given a tenth of a second to end."""
    monkeypatch.setattr(threads, "CLOSE_S", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_args, **_kwargs):
        begun.set()
        assert go_on.wait(20)

    hang.begun, hang.go_on = begun, go_on
    yield hang
    go_on.set()


def test_closing_does_not_wait_for_a_decoder_that_hangs(parts, stuck, monkeypatch, caplog):
    """Its listeners are told, its memory stays until it ends, and then it can be closed for good."""
    engine = MusicGenEngine(*parts, EngineSettings(slots=1, queue=1, window_s=1.5, kept_s=1.0))
    monkeypatch.setattr(engine._stepper, "step", stuck)
    streams = [engine.submit(generation()) for _ in range(2)]
    assert stuck.begun.wait(10)
    engine.close()
    assert "musicgen-decoder has not ended within 0.1 s" in caplog.text
    for stream in streams:
        with pytest.raises(EngineBusy, match="closing"):
            whole(stream)
    assert engine._state is not None
    stuck.go_on.set()
    engine._thread.join(10)
    engine.close()
    assert not hasattr(engine, "_state")


def test_closing_does_not_wait_for_a_codec_that_hangs(parts, stuck, caplog):
    engine = MusicGenEngine(*parts, SETTINGS)
    decoded, engine._runner = engine._runner, CodecRunner(torch.device("cpu"), lambda *_: stuck(), threaded=True)
    streams = [engine.submit(generation()) for _ in range(2)]
    assert stuck.begun.wait(10)
    threading.Event().wait(0.5)
    engine.close()
    assert "musicgen-codec has not ended within 0.1 s" in caplog.text
    for stream in streams:
        with pytest.raises((EngineBusy, ServerUnavailable)):
            whole(stream)
    stuck.go_on.set()
    engine.close()
    assert not hasattr(engine, "_state")
    decoded.close()


def test_a_decoder_does_not_outrun_its_codec(parts, monkeypatch):
    settings = EngineSettings(slots=1, window_s=1.5, kept_s=1.0, ahead_s=1.0, longest_chunk_s=0.5)
    engine = MusicGenEngine(*parts, settings)
    decode, held = engine._runner.submit, []
    monkeypatch.setattr(engine._runner, "submit", held.append)  # a codec that is busy elsewhere
    stream = engine.submit(generation(frames=400))
    threading.Event().wait(0.5)
    frames = sum(work.codes.shape[1] for work in held)
    assert 0 < frames / FRAME_RATE < 2.0
    monkeypatch.setattr(engine._runner, "submit", decode)
    for work in held:
        decode(work)
    assert len(whole(stream)) == 1600
    engine.close()


def test_a_request_that_cannot_begin_hurts_no_other(parts, engine, monkeypatch):
    begin = engine._state.begin

    def fail(slot, piece, text):
        if piece.seed == 13:
            raise RuntimeError("no memory")
        begin(slot, piece, text)

    monkeypatch.setattr(engine._state, "begin", fail)
    bad, good = engine.submit(generation(seed=13)), engine.submit(generation(seed=1))
    assert len(whole(good)) == 80
    with pytest.raises(Exception, match="server's log"):
        list(bad)


def test_want_of_memory_ends_the_youngest_request_alone(parts, engine, monkeypatch):
    step, failures = engine._stepper.step, iter([torch.OutOfMemoryError("CUDA out of memory")])

    def stepping(slots, used):
        if slots == 2 and (error := next(failures, None)) is not None:
            raise error
        step(slots, used)

    monkeypatch.setattr(engine._stepper, "step", stepping)
    old, young = engine.submit(generation(frames=400)), engine.submit(generation(frames=400))
    with pytest.raises(EngineBusy, match="no memory left"):
        list(young)
    assert len(whole(old)) == 1600
    assert engine.statistics().failed == 1


def test_there_is_no_click_where_the_window_slides(engine):
    music = whole(engine.submit(generation(frames=1200, sampling=SamplingSettings())))
    jumps = np.abs(np.diff(music, axis=0)).max(axis=1)
    window, kept = round(1.5 * FRAME_RATE), round(1.0 * FRAME_RATE)
    joins = np.arange(window, 1200, window - kept) * 4
    assert len(joins) > 40
    near = np.concatenate([jumps[join - 8 : join + 8] for join in joins])
    assert np.quantile(near, 0.99) < 1.2 * np.quantile(jumps, 0.99)


def test_nothing_shorter_than_a_frame_is_asked_for(engine):
    with pytest.raises(InvalidOption, match="at least one frame"):
        engine.submit(Generation("abc", 0.001))
