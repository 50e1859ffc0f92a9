"""Every call of the music engine's loop fails once, or from some time on: nobody waits in vain, and the next is served.

.venv/bin/pytest tests/unit/test_musicgen_failures.py
"""

from __future__ import annotations

import gc
import inspect
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from attune_client.protocol.errors import AttuneError, RequestTimeout, ServerUnavailable
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.musicgen import music_engine
from attune_ensemble.music.musicgen.codec import ChunkedCodec, CodecStream
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder, KeyValueCache
from attune_ensemble.music.musicgen.decoding import CodecRunner
from attune_ensemble.music.musicgen.engine import MusicGenEngine
from attune_ensemble.music.musicgen.failures import EngineBusy
from attune_ensemble.music.musicgen.loading import engine_of, parts_of
from attune_ensemble.music.musicgen.music_engine import MusicGenAdapter
from attune_ensemble.music.musicgen.requests import Generation
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.state import BatchState
from attune_ensemble.music.musicgen.statistics import EngineCounters
from attune_ensemble.music.musicgen.stepping import Stepper
from attune_ensemble.music.plan import ConstantPlan
from tests.musicgen_models import Letters, tiny_musicgen

SETTINGS = EngineSettings(slots=2, window_s=0.6, kept_s=0.4, first_chunk_s=0.1, longest_chunk_s=0.2)
REQUESTS = [
    Generation(prompt, frames / 40, seed) for seed, (prompt, frames) in enumerate([("a", 9), ("b", 30), ("", 6)])
]
BOUND_S = 20.0

OTHERS = {
    MusicGenEngine: {"submit", "warm_up", "statistics", "close", "_wake", "_run", "_turn"},
    Conditioner: {"check", "_tokens"},
    EngineCounters: {"read"},
    CodecRunner: {"close", "_run"},
    ChunkedCodec: set(),
    CodecStream: set(),
    Decoder: {"compile_layers", "fold_norms"},
    KeyValueCache: set(),
    BatchState: {"run", "step_rows"},
    Stepper: {"_hold_back", "prepare", "_captured", "_rows", "_context", "_contexts"},
}
"""What the loop consists of, and what of it other threads call, a GPU alone has, or is the frame around it."""

ONLY_AFTER_ANOTHER = {"_start_over", "_make_room", "failed", "_nothing", "_take"}


def calls():
    """Every function of the loop, as (class, name)."""
    for kind, others in OTHERS.items():
        for name, function in vars(kind).items():
            if inspect.isfunction(function) and not name.startswith("__") and name not in others:
                yield kind, name


CALLS = list(calls())


@pytest.fixture(scope="module")
def parts():
    return parts_of(tiny_musicgen(), Letters(), numerics="float32", device="cpu", max_prompt_tokens=64)


def whole(stream):
    return np.concatenate(list(stream))


@pytest.fixture(scope="module")
def alone(parts):
    engine = engine_of(parts, SETTINGS)
    music = [whole(engine.submit(request)) for request in REQUESTS]
    engine.close()
    return music


class Listener(threading.Thread):
    """Takes all the audio of a stream, and keeps what ended it."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.audio, self.error = stream, [], None
        self.start()

    def run(self):
        try:
            self.audio.extend(self.stream)
        except BaseException as error:
            self.error = error


def checked(listener, expected):
    """Whether it got all of the music; otherwise it got the beginning, and an error of ours."""
    listener.join(BOUND_S)
    assert not listener.is_alive(), "a stream hangs"
    heard = np.concatenate([*listener.audio, np.zeros((0, 1), np.float32)])
    np.testing.assert_allclose(heard, expected[: len(heard)], rtol=0, atol=1e-5)
    if listener.error is None:
        assert len(heard) == len(expected)
        return True
    assert isinstance(listener.error, AttuneError), listener.error
    assert "injected" not in str(listener.error)
    return False


class Injected(RuntimeError):
    """What fails."""


def inject(monkeypatch, kind, name, at, *, for_ever=False, error=Injected):
    """Let a function fail at its `at`-th call by the engine's threads; returns how often it was called and failed."""
    function, lock, counts = getattr(kind, name), threading.Lock(), {"calls": 0, "failures": 0}

    def failing(*args, **kwargs):
        fails = False
        if threading.current_thread().name.startswith("musicgen"):
            with lock:
                counts["calls"] += 1
                fails = counts["calls"] >= at if for_ever else counts["calls"] == at
                counts["failures"] += fails
        if fails:
            raise error("injected")
        return function(*args, **kwargs)

    monkeypatch.setattr(kind, name, failing)
    return counts


def listened(engine):
    """Somebody who listens to each request; None where an engine that has failed for good refused it at once."""
    listeners = []
    with engine._changed:  # so that all of them are there before the loop looks
        for request in REQUESTS:
            try:
                listeners.append(Listener(engine.submit(request)))
            except ServerUnavailable:
                assert not engine.healthy
                listeners.append(None)
    return listeners


def all_served(engine, alone):
    """Which requests got all of their music."""
    listeners = listened(engine)
    return [listener is not None and checked(listener, music) for listener, music in zip(listeners, alone, strict=True)]


@pytest.fixture
def make(parts):
    """An engine, made when the test asks for it: after it has put its fault in."""
    made = []
    parts.conditioner._states.clear()  # what was remembered of a prompt would spare the text encoder

    def make():
        made.append(engine_of(parts, SETTINGS))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make):
    return make()


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize(("kind", "name"), CALLS, ids=lambda value: getattr(value, "__name__", value))
def test_a_failure_anywhere_leaves_nobody_waiting_and_the_next_is_served(make, alone, monkeypatch, kind, name, at):
    with monkeypatch.context() as broken:
        counts = inject(broken, kind, name, at)
        engine = make()
        all_served(engine, alone)
        assert counts["calls"] or name in ONLY_AFTER_ANOTHER, "nothing was tried"
    assert engine.healthy
    assert all(all_served(engine, alone))


@pytest.mark.parametrize(
    ("kind", "name"),
    [call for call in CALLS if call[1] != "_streams"],  # without which the last resort knows nobody
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_fails_for_ever_is_said_at_once(make, alone, monkeypatch, kind, name):
    counts = inject(monkeypatch, kind, name, 1, for_ever=True)
    engine = make()
    for _ in range(3):
        served = all_served(engine, alone)
    assert counts["failures"] or name in ONLY_AFTER_ANOTHER
    if not engine.healthy:
        with pytest.raises(ServerUnavailable, match="has failed"):
            engine.submit(REQUESTS[0])
        assert engine.statistics().metrics()["musicgen_healthy"] == 0
    else:
        assert counts["failures"] == 0 or not all(served)


def test_the_thread_ends_with_an_error_for_everybody_whatever_ends_it(engine, monkeypatch):
    inject(monkeypatch, BatchState, "step", 5, error=SystemExit)
    first, *others = listened(engine)
    for listener in [first, *filter(None, others)]:
        listener.join(BOUND_S)
        assert isinstance(listener.error, ServerUnavailable)
    with pytest.raises(ServerUnavailable):
        engine.submit(REQUESTS[0])


# Want of memory


@pytest.mark.parametrize("name", ["slide", "step"])
def test_want_of_memory_ends_one_piece_and_spoils_no_other(engine, alone, monkeypatch, name):
    counts = inject(monkeypatch, {"slide": BatchState, "step": Stepper}[name], name, 2, error=torch.OutOfMemoryError)
    listeners = listened(engine)
    served = [checked(listener, music) for listener, music in zip(listeners, alone, strict=True)]
    assert counts["failures"] == 1
    assert served.count(False) == 1
    assert any(isinstance(listener.error, EngineBusy) for listener in listeners)


def test_a_step_that_ran_out_of_memory_half_way_is_made_again(engine, alone, monkeypatch):
    step, failures = BatchState.step, iter([True])

    def half_way(state, slots, used):
        step(state, slots, used)
        if slots == 2 and next(failures, False):
            raise torch.OutOfMemoryError("injected")  # when the positions have moved already

    monkeypatch.setattr(BatchState, "step", half_way)
    served = all_served(engine, alone)
    assert served == [True, False, True]  # the second was the youngest that played


# The codec's thread, which a GPU has


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CodecStream, "push"),
        (CodecRunner, "_decode"),
        (CodecRunner, "_take"),
        (CodecRunner, "submit"),
        (MusicGenEngine, "_decoded"),
        (EngineCounters, "heard"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_failure_in_the_thread_of_the_codec_leaves_nobody_waiting(make, alone, monkeypatch, kind, name, at):
    with monkeypatch.context() as broken:
        counts = inject(broken, kind, name, at)
        engine = make()
        engine._runner = CodecRunner(torch.device("cpu"), engine._decoded, threaded=True)
        assert not all(all_served(engine, alone))
        assert counts["failures"] == 1
    if name == "_take":  # that ends the codec's thread, and so the engine
        with pytest.raises(ServerUnavailable):
            list(engine.submit(REQUESTS[0]))
        engine._thread.join(BOUND_S)
        with pytest.raises(ServerUnavailable):
            engine.submit(REQUESTS[0])
    else:
        assert all(all_served(engine, alone))


# Those that have gone


def test_a_request_that_was_given_up_in_the_queue_wins_no_slot(engine, monkeypatch):
    begun, encode = [], Conditioner.encode
    encoding, cancelled = threading.Event(), threading.Event()

    def slowly(conditioner, prompt):
        begun.append(prompt)
        if prompt == "slow":
            encoding.set()
            assert cancelled.wait(BOUND_S)
        return encode(conditioner, prompt)

    monkeypatch.setattr(Conditioner, "encode", slowly)
    first = engine.submit(Generation("slow", 0.5))
    assert encoding.wait(BOUND_S)
    gone = engine.submit(Generation("gone", 0.5))
    late = engine.submit(Generation("late", 0.5, deadline_s=0.0))
    last = engine.submit(Generation("last", 0.5))
    gone.cancel()
    cancelled.set()  # the loop goes straight on to seat the next one
    assert len(whole(first)) == len(whole(last)) == 80
    assert begun == ["slow", "last"]
    with pytest.raises(RequestTimeout):
        list(late)


def test_a_request_between_queue_and_slot_counts(parts, monkeypatch):
    engine = engine_of(parts, EngineSettings(slots=1, queue=1, window_s=0.6, kept_s=0.4))
    encode, encoding, free = Conditioner.encode, threading.Event(), threading.Event()

    def slowly(conditioner, prompt):
        encoding.set()
        assert free.wait(BOUND_S)
        return encode(conditioner, prompt)

    monkeypatch.setattr(Conditioner, "encode", slowly)
    streams = [engine.submit(Generation("new words", 0.5))]
    assert encoding.wait(BOUND_S)
    streams.append(engine.submit(Generation("b", 0.5)))
    with pytest.raises(EngineBusy):
        engine.submit(Generation("c", 0.5))
    assert engine.statistics().waiting == 2
    free.set()
    assert [len(whole(stream)) for stream in streams] == [80, 80]
    engine.close()


def test_requests_may_come_while_the_loop_looks_at_the_queue(parts):
    """A deque that changes while somebody goes through it raises."""
    engine = engine_of(parts, EngineSettings(slots=1, queue=10_000, window_s=0.6, kept_s=0.4))
    stop, streams = time.monotonic() + 1.0, []

    def submit():
        mine = []
        while time.monotonic() < stop:
            mine.append(engine.submit(Generation("a", 5.0)))
            if len(mine) > 50:
                mine.pop().cancel()
        streams.extend(mine)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.healthy
    assert engine.statistics().failed == 0
    for stream in streams:
        stream.cancel()
    engine.close()


# The adapter


def asked():
    return MusicRequest(ConstantPlan(MusicSpec(72.0, "dorian", "D", ("piano",), "mp"), "calm"), 1.0, seed=3)


def played(adapter):
    return sum(map(len, adapter.generate(asked(), chunk_s=0.5)))


def test_an_engine_that_failed_for_good_refuses_at_once_and_is_made_anew(parts, monkeypatch):
    adapter = MusicGenAdapter(lambda: engine_of(parts, SETTINGS), SamplingSettings())
    assert played(adapter) == 160
    with monkeypatch.context() as broken:
        inject(broken, BatchState, "step", 1, for_ever=True)
        for _ in range(3):
            with pytest.raises(AttuneError):
                played(adapter)
        deadline = time.monotonic() + BOUND_S
        while adapter.healthy and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not adapter.healthy
        assert adapter.metrics()["musicgen_healthy"] == 0
        with pytest.raises(ServerUnavailable, match="has failed"):
            next(adapter.generate(asked(), chunk_s=0.5))
    monkeypatch.setattr(music_engine, "RETRY_S", 0.0)
    assert played(adapter) == 160
    assert adapter.healthy


def test_an_engine_that_cannot_be_made_anew_is_not_tried_for_every_request(parts, monkeypatch):
    made = []

    def make():
        made.append(1)
        if len(made) > 1:
            raise RuntimeError("no GPU any more")
        return engine_of(parts, SETTINGS)

    adapter = MusicGenAdapter(make, SamplingSettings())
    adapter._engine.close()
    adapter._engine._gave_up = True
    monkeypatch.setattr(music_engine, "RETRY_S", 0.0)
    with pytest.raises(ServerUnavailable):
        played(adapter)
    monkeypatch.setattr(music_engine, "RETRY_S", 60.0)
    for _ in range(3):
        with pytest.raises(ServerUnavailable):
            played(adapter)
    assert len(made) == 2


def test_a_closed_engine_keeps_none_of_its_memory(parts):
    """On a GPU the engine that is made in its place needs it."""
    engine = engine_of(parts, SETTINGS)
    whole(engine.submit(REQUESTS[0]))
    state = weakref.ref(engine._state)
    engine.close()
    gc.collect()
    assert state() is None
    engine.close()
    with pytest.raises(ServerUnavailable):
        engine.submit(REQUESTS[0])


def threads_of_music():
    return [thread for thread in threading.enumerate() if thread.name.startswith("musicgen")]


def test_closing_the_adapter_ends_its_threads_and_what_plays(parts):
    before = threads_of_music()
    adapter = MusicGenAdapter(lambda: engine_of(parts, SETTINGS), SamplingSettings())
    assert len(threads_of_music()) > len(before)
    music = adapter.generate(replace(asked(), duration_s=60.0), chunk_s=0.5)
    assert any(map(len, music))
    adapter.close()
    with pytest.raises(EngineBusy, match="closing"):
        list(music)
    assert threads_of_music() == before


def test_closing_the_adapter_does_not_wait_for_an_engine_that_is_being_made_anew(parts, monkeypatch, caplog):
    """It is closed once it is made."""
    before, made, making, go_on = threads_of_music(), [], threading.Event(), threading.Event()

    def make():
        if made:
            making.set()
            assert go_on.wait(BOUND_S)
        made.append(engine_of(parts, SETTINGS))
        return made[-1]

    adapter = MusicGenAdapter(make, SamplingSettings())
    adapter._engine.close()
    adapter._engine._gave_up = True
    monkeypatch.setattr(music_engine, "RETRY_S", 0.0)
    monkeypatch.setattr(music_engine, "CLOSE_S", 0.1)
    reviving = threading.Thread(target=adapter._revive)
    reviving.start()
    assert making.wait(BOUND_S)
    adapter.close()
    assert "still being made anew" in caplog.text
    go_on.set()
    reviving.join(BOUND_S)
    assert len(made) == 2
    assert threads_of_music() == before


def test_a_request_that_is_not_done_in_time_ends_and_frees_its_slot(parts):
    adapter = MusicGenAdapter(lambda: engine_of(parts, SETTINGS), SamplingSettings())
    with pytest.raises(RequestTimeout, match="not finished in time"):
        list(adapter.generate(replace(asked(), duration_s=600.0, deadline_s=0.1), chunk_s=0.5))
    assert played(adapter) == 160
    adapter.close()
