"""What users of such servers have reported: concurrency, slow and vanished readers, clients and loops, silence."""

from __future__ import annotations

import asyncio
import io
import queue
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr
from tritonclient.grpc import InferenceServerClient, InferInput

from attune_client.aio import AsyncAttuneClient
from attune_client.client import AttuneClient
from attune_client.protocol.errors import NoSpeech, RequestTimeout, ServerError, SilentAudio
from attune_client.protocol.models import MUSIC_THERAPY, SPEECH_SAMPLE_RATE
from attune_client.protocol.tensors import bytes_tensor
from attune_client.results import SpeechEmotion
from attune_ensemble.chaos.harness.calls import Analyse, Ended, Outcome, Play, describe
from attune_ensemble.chaos.harness.case import PATIENCE_S, Case, Row
from attune_ensemble.chaos.harness.served import Served

__all__ = ["ROWS"]

Samples = npt.NDArray[np.float32]


# --- many at once ---


def streams_of_callers(case: Case) -> None:
    """Streams of the model that calls all others, at once: each is heard to its end."""
    server = case.server()
    clients, each = (4, 3) if case.quick else (4, 8)
    with case.swarm(server, [[Play(seconds=2)] * each] * clients) as swarm:
        case.all_answered(swarm.wait(within_s=90), f"{clients * each} streams at once")


def cold_start(case: Case) -> None:
    """Two requests in the moment in which a new server is ready."""
    server = case.fresh_server()
    case.all_answered(case.at_once(server, [Analyse(case.clip), Play(audio=case.clip)]), "the first two requests")
    again = case.at_once(server, [Analyse(case.clip), Play(audio=case.clip)])
    case.all_answered(again, "the same again")


@dataclass
class _Music:
    """Music that is kept; `options` are those of `AttuneClient.play`."""

    options: Mapping[str, Any]
    name: str = "music"
    chunks: list[Samples] = field(default_factory=list)

    def __call__(self, client: AttuneClient, heard: Any) -> None:
        """Listen to the end."""
        with client.play(**self.options) as stream:
            for chunk in stream:
                heard()
                self.chunks.append(chunk)

    @property
    def samples(self) -> Samples:
        """All of it, [N, C]."""
        return np.concatenate(self.chunks) if self.chunks else np.zeros((0, 2), np.float32)


def _wish(seed: int, seconds: float = 3.0) -> _Music:
    return _Music({"emotion": "hopeful", "duration_s": seconds, "seed": seed}, f"music of seed {seed}")


def same_seed(case: Case) -> None:
    """A seed alone, and among seven others: the same samples."""
    server = case.server()
    alone, beside = _wish(1), [_wish(seed) for seed in range(1, 9)]
    case.all_answered(case.at_once(server, [alone]), "alone")
    case.all_answered(case.at_once(server, beside), "eight at once")
    case.expect(np.array_equal(alone.samples, beside[0].samples), "the same seed among others gave other music")
    others = sum(np.array_equal(alone.samples, other.samples) for other in beside[1:])
    case.expect(not others, f"{others} other seeds gave the same music")


@dataclass
class _Interleaved:
    """Two streams of one client, of which one chunk each is taken in turn."""

    first: _Music
    second: _Music
    name: str = "two streams of one client"

    def __call__(self, client: AttuneClient, heard: Any) -> None:
        """Listen to both to their ends."""
        with client.play(**self.first.options) as one, client.play(**self.second.options) as two:
            for first, second in zip_longest(one, two):
                heard()
                if first is not None:
                    self.first.chunks.append(first)
                if second is not None:
                    self.second.chunks.append(second)


def two_streams(case: Case) -> None:
    """Two streams on one client object, in one thread and in two: each has its own music."""
    server = case.server()
    alone = [_wish(1), _wish(2, 5.0)]
    for music in alone:
        case.all_answered(case.at_once(server, [music]), "one stream")
    in_two = [_wish(1), _wish(2, 5.0)]
    case.all_answered(case.at_once(server, in_two), "two streams in two threads")
    in_one = _Interleaved(_wish(1), _wish(2, 5.0))
    case.all_answered(case.at_once(server, [in_one]), "two streams in one thread")
    for number, music in enumerate(alone):
        for other in (in_two[number], (in_one.first, in_one.second)[number]):
            case.expect(np.array_equal(music.samples, other.samples), f"{other.name}: another music than alone")


# --- how it is read ---


def small_chunks(case: Case) -> None:
    """Five streams of ten minutes in chunks of 60 ms, ten thousand of them each: the server's memory stays as it is."""
    with tempfile.TemporaryDirectory(prefix="chaos-repository-") as folder:
        repository = _with_setting(case.settings.repository, Path(folder), "music_generator", "chunk_s", "0.06")
        server = case.fresh_server(repository=repository)
        used_mib: list[float] = []
        # Each of them is a client of its own.
        with case.swarm(server, [[Play(seconds=600, name="10,000 chunks")]] * 5, patience_s=PATIENCE_S) as swarm:
            case.require(swarm.wait_until_heard(5, within_s=60) == 5, f"no music came: {describe(swarm.ended)}")
            while len(swarm.ended) < 5:
                case.check_time()
                swarm.wait_until_heard(len(swarm.ended) + 10**6, within_s=2)
                used_mib.append(_used_mib(server))
            case.all_answered(swarm.ended, "streams of 10,000 chunks")
    quarter = max(1, len(used_mib) // 4)
    early, late = np.mean(used_mib[quarter : 2 * quarter]), np.mean(used_mib[-quarter:])
    case.note(f"{early:.0f} MiB in the second quarter, {late:.0f} in the last, at most {max(used_mib):.0f}")
    case.expect(late < 1.1 * early, f"memory grew from {early:.0f} to {late:.0f} MiB while music was heard")


def _used_mib(server: Served) -> float:
    now = server.footprint()
    return now.memory_mib + now.shm_mib


def _with_setting(repository: Path, folder: Path, model: str, setting: str, value: str) -> Path:
    """A repository in `folder` that has everything of the other one, and one setting of a model changed."""
    for entry in repository.iterdir():
        if entry.name != model:
            (folder / entry.name).symlink_to(entry)
    (folder / model).mkdir()
    for entry in (repository / model).iterdir():
        if entry.name != "config.pbtxt":
            (folder / model / entry.name).symlink_to(entry)
    config = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    pattern = rf'(key: "{setting}"\s+value \{{\s+string_value: )"[^"]*"'
    changed, count = re.subn(pattern, rf'\g<1>"{value}"', config)
    if count != 1:
        raise LookupError(f"{model} has no setting {setting} that could be changed")
    (folder / model / "config.pbtxt").write_text(changed, encoding="utf-8")
    return folder


def slow_reader(case: Case) -> None:
    """A reader of one chunk a second gets all of 60 s, or is told why not; an end without a word counts as lost."""
    server = case.server()
    seconds = 8.0 if case.quick else 60.0
    ended = case.ask(server, Play(seconds=seconds, pause_s=1.0, name="one chunk a second"))
    case.note(str(ended))
    case.all_answered([case.ask(server, Play())], "a reader afterwards")


# --- clients ---

_STOP_S = 1.0
_QUIET_S = 2.0
_QUIET = 0.25
"""Processors that a server may use after its only stream was stopped, beyond what it used before."""


def stop_stream(case: Case) -> None:
    """Triton's own client: `stop_stream` with cancelling returns within a second, and the work has stopped then."""
    server = case.server()
    case.all_answered([case.ask(server, Play())], "before")
    case.pause(1.0)
    idle = _busy(case, server)
    client, responses = InferenceServerClient(server.url), queue.SimpleQueue[Any]()
    try:
        client.start_stream(lambda result, error: responses.put(error or result))
        client.async_stream_infer(MUSIC_THERAPY.name, _inputs(text="calm", duration_s=600.0))
        for _ in range(3):
            responses.get(timeout=PATIENCE_S)
        started_s = time.monotonic()
        client.stop_stream(cancel_requests=True)
        took_s = time.monotonic() - started_s
    finally:
        client.close()
    case.tally.add(Ended("stop_stream", Outcome.ANSWERED, started_s, took_s))
    case.expect(took_s < _STOP_S, f"stop_stream returned after {took_s:.1f} s")
    case.pause(_QUIET_S)
    busy = _busy(case, server)
    case.note(f"busy {idle:.2f} before, {busy:.2f} after")
    case.expect(busy < idle + _QUIET, f"the server still works: {busy:.2f} processors, {idle:.2f} before")


def _inputs(*, text: str, duration_s: float) -> list[InferInput]:
    values = {"text": bytes_tensor(text), "duration_s": np.array([duration_s], np.float32)}
    inputs = []
    for name, value in values.items():
        tensor = InferInput(name, list(value.shape), MUSIC_THERAPY.input(name).dtype.value)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return inputs


def _busy(case: Case, server: Served, over_s: float = 1.0) -> float:
    """How many processors the server uses."""
    processes = server.processes()
    before_s = [process.cpu_times() for process in processes]
    case.pause(over_s)
    after_s = [process.cpu_times() for process in processes]
    used = zip(before_s, after_s, strict=True)
    return sum(after.user + after.system - before.user - before.system for before, after in used) / over_s


@dataclass(frozen=True, slots=True)
class _OtherLoops:
    """A client of asyncio that was made before there was a loop, in three loops one after the other."""

    url: str
    name: str = "a client of asyncio in other loops"

    def __call__(self, client: AttuneClient, heard: Any) -> None:
        """Ask in each loop, the last of them in another thread."""
        made = AsyncAttuneClient(self.url, timeout_s=PATIENCE_S)
        for _ in range(2):
            asyncio.run(_ask(made))
        failed: list[BaseException] = []
        thread = threading.Thread(target=_ask_in_a_loop, args=(made, failed))
        thread.start()
        thread.join(PATIENCE_S)
        if thread.is_alive():
            raise RequestTimeout("nothing came in another thread")
        if failed:
            raise failed[0]


async def _ask(client: AsyncAttuneClient) -> None:
    await client.prompt("rain on the window")
    async with await client.play_text("calm", duration_s=1) as stream:
        frames = sum([len(chunk) async for chunk in stream])
    if frames != stream.session.sample_rate:
        raise ServerError(f"{frames} frames came")


def _ask_in_a_loop(client: AsyncAttuneClient, failed: list[BaseException]) -> None:
    async def ask() -> None:
        await _ask(client)
        await client.close()

    try:
        asyncio.run(ask())
    except BaseException as error:
        failed.append(error)


def other_loops(case: Case) -> None:
    """A client of asyncio that was made when its module was imported, before any loop."""
    server = case.server()
    case.all_answered([case.ask(server, _OtherLoops(server.url))], "in other loops")


# --- what is heard ---

_NOISE_DBFS = -50.0


def _wav(samples: Samples) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, SPEECH_SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _noises(seconds: float) -> Mapping[str, Samples]:
    """Noises at -50 dB below full scale (RMS), by name."""
    count = round(seconds * SPEECH_SAMPLE_RATE)
    white = np.random.default_rng(14).standard_normal(count)
    spectrum = np.fft.rfft(white) / np.sqrt(np.maximum(np.fft.rfftfreq(count, 1 / SPEECH_SAMPLE_RATE), 20.0))
    time_s = np.arange(count) / SPEECH_SAMPLE_RATE
    noises = {"white": white, "pink": np.fft.irfft(spectrum, count), "hum": np.sin(2 * np.pi * 50 * time_s)}
    level = 10 ** (_NOISE_DBFS / 20)
    return {name: (level * noise / np.sqrt(np.mean(noise**2))).astype(np.float32) for name, noise in noises.items()}


def no_speech(case: Case) -> None:
    """A minute of silence and of noise: the answer is that nothing was said, and never an emotion."""
    server = case.server()
    seconds = 10.0 if case.quick else 60.0
    sounds = {"silence": np.zeros(round(seconds * SPEECH_SAMPLE_RATE), np.float32), **_noises(seconds)}
    for name, samples in sounds.items():
        ended = case.ask(server, Analyse(_wav(samples), name=f"{seconds:g} s of {name}"))
        told = (SilentAudio.__name__, NoSpeech.__name__) if name == "silence" else (NoSpeech.__name__,)
        case.expect(ended.error in told, f"{ended}, and not {' or '.join(told)}")


@dataclass
class _Kept:
    """An analysis whose answer is kept."""

    audio: bytes = field(repr=False)
    name: str = "speech, silence, speech"
    answers: list[SpeechEmotion] = field(default_factory=list)

    def __call__(self, client: AttuneClient, heard: Any) -> None:
        """Ask."""
        self.answers.append(client.analyse(self.audio))


_SPEECH_S, _GAP_S, _NEAR_S = 3.0, 5.0, 0.3
_FRAME = SPEECH_SAMPLE_RATE // 50
_HEARD_DB = 35.0
"""How far below the loudest moment speech begins and ends."""


def _voiced(samples: Samples) -> tuple[float, float]:
    """When speech begins and ends, in seconds."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
    loud = np.flatnonzero(level > level.max() - _HEARD_DB)
    return float(loud[0] * _FRAME) / SPEECH_SAMPLE_RATE, float((loud[-1] + 1) * _FRAME) / SPEECH_SAMPLE_RATE


def _speech(recording: Path) -> Samples:
    """The first three seconds from where somebody speaks."""
    samples, rate = sf.read(recording, dtype="float32", always_2d=True)
    mono: Samples = soxr.resample(samples.mean(axis=1), rate, SPEECH_SAMPLE_RATE)
    start = round(_voiced(mono)[0] * SPEECH_SAMPLE_RATE)
    return mono[start : start + round(_SPEECH_S * SPEECH_SAMPLE_RATE)]


def segment_times(case: Case) -> None:
    """Three seconds of speech, five of silence, three of speech: the segments stand where somebody speaks."""
    server, speech = case.server(), _speech(case.settings.recording)
    silence = np.zeros(round(_GAP_S * SPEECH_SAMPLE_RATE), np.float32)
    kept = _Kept(_wav(np.concatenate([speech, silence, speech])))
    if not case.all_answered([case.ask(server, kept)], kept.name):
        return
    spans = [(segment.start_s, segment.end_s) for segment in kept.answers[0].segments]
    case.note(f"segments {[f'{start:.2f}..{end:.2f}' for start, end in spans]}")
    begin_s, end_s = _voiced(speech)
    for offset_s in (0.0, len(speech) / SPEECH_SAMPLE_RATE + _GAP_S):
        half = [span for span in spans if offset_s - 1 < sum(span) / 2 < offset_s + _SPEECH_S + 1]
        if not case.expect(half, f"no segment of the speech at {offset_s:g} s"):
            continue
        _near(case, half[0][0], offset_s + begin_s, "a segment begins")
        _near(case, half[-1][1], offset_s + end_s, "a segment ends")


def _near(case: Case, found_s: float, expected_s: float, what: str) -> None:
    case.expect(abs(found_s - expected_s) <= _NEAR_S, f"{what} at {found_s:.2f} s, and not at {expected_s:.2f}")


ROWS: Sequence[Row] = (
    Row("streams-32", "32 streams at once of models that call models", streams_of_callers, 120, quick_limit_s=90),
    Row("cold-start", "two requests as soon as a server is ready", cold_start, limit_s=300),
    Row("same-seed", "a seed alone, and among seven others", same_seed, limit_s=120, quick_limit_s=60),
    Row("two-streams", "two streams on one client object", two_streams, limit_s=90, quick_limit_s=60),
    Row("small-chunks", "five streams of 10,000 chunks, memory", small_chunks, limit_s=1200),
    Row("slow-reader", "one chunk a second, for a minute", slow_reader, limit_s=180, quick_limit_s=60),
    Row("stop-stream", "stop_stream with cancelling", stop_stream, limit_s=90, quick_limit_s=60),
    Row("other-loops", "a client of asyncio made before its loop", other_loops, limit_s=90, quick_limit_s=60),
    Row("no-speech", "a minute of silence, and of noise", no_speech, limit_s=120, quick_limit_s=60),
    Row("segment-times", "speech, silence, speech", segment_times, limit_s=60, quick_limit_s=60),
)
