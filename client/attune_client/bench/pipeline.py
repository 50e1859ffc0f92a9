"""`attune bench pipeline`: end-to-end times of the served pipeline.

    attune serve -- attune bench pipeline samples/*.wav

Measures the time to the first audio of a recording, against the recording's own length; ten recordings sent at once,
against one after the other, both from one process, with the server's own count of how it batched them; and a minute of
music, against real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import click
import soundfile as sf
from tritonclient.grpc import InferenceServerClient

from attune_client.aio import AsyncAttuneClient
from attune_client.bench.report import Row, hardware_line, json_line, markdown_table
from attune_client.bench.serving.options import server_pid_option
from attune_client.bench.serving.processor import server_processes
from attune_client.client import AttuneClient, MusicStream
from attune_client.commands import AUDIO_FILE, server_options
from attune_client.protocol.models import VALENCE_MODEL

CLIPS = 10
MUSIC_S = 60.0


@click.command()
@click.argument("audio", nargs=-1, required=True, type=AUDIO_FILE)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Counted runs of each.")
@server_pid_option("to report the server's peak memory")
@server_options
def pipeline(audio: tuple[Path, ...], runs: int, server_pid: int | None, url: str, timeout_s: float | None) -> None:
    """Time a running server on recordings: first audio, ten recordings at once, a minute of music."""
    click.echo(hardware_line())
    with AttuneClient(url, timeout_s=timeout_s) as client:
        rows = [*_first_audio(client, audio, runs), *_minute_of_music(client, audio[0], runs)]
    rows += _ten_recordings(audio, runs, url, timeout_s)
    click.echo(markdown_table(rows))
    memory = {} if server_pid is None else {"server_peak_gib": peak_memory_gib(server_pid)}
    for name, gib in memory.items():
        click.echo(f"{name}: {gib:.2f}")
    click.echo(json_line(rows, **memory))


def _first_audio(client: AttuneClient, audio: Sequence[Path], runs: int) -> list[Row]:
    rows = []
    for path in audio:
        length = Row(f"{path.stem}: its length", (sf.info(path).duration,))

        def play(path: Path = path) -> None:
            with client.play(path, duration_s=5) as stream:
                next(stream)

        rows += [length, Row(f"{path.stem}: first audio", _times(play, runs), length.name)]
    return rows


def _minute_of_music(client: AttuneClient, path: Path, runs: int) -> list[Row]:
    """Time a minute of music, from the session's response to the last chunk."""

    def play() -> float:
        with client.play(path, duration_s=MUSIC_S) as stream:
            return _time(lambda: _drain(stream))

    length = Row(f"{MUSIC_S:.0f} s of music: its length", (MUSIC_S,))
    return [length, Row(f"{MUSIC_S:.0f} s of music", tuple(play() for _ in range(runs)), length.name)]


def _drain(stream: MusicStream) -> None:
    for _ in stream:
        pass


def _ten_recordings(audio: Sequence[Path], runs: int, url: str, timeout_s: float | None) -> list[Row]:
    """Time ten recordings sequentially and concurrently, in alternation, so that noise affects both."""
    clips = [path.read_bytes() for path in itertools.islice(itertools.cycle(audio), CLIPS)]
    apart, together = f"{CLIPS} recordings, one after the other", f"{CLIPS} recordings, at once"
    times: dict[str, list[float]] = {apart: [], together: []}
    batches: dict[str, list[float]] = {apart: [], together: []}
    for _ in range(runs + 1):
        for name, at_once in ((apart, 1), (together, CLIPS)):
            before = _executions(url)
            times[name].append(asyncio.run(_analyse(clips, url, timeout_s, at_once)))
            batches[name].append(_mean_batch(before, _executions(url)))
    # The first round is a warm-up and not counted.
    notes = {name: f"{median(sizes[1:]):.1f} segments an execution" for name, sizes in batches.items()}
    return [
        Row(apart, tuple(times[apart][1:]), note=notes[apart]),
        Row(together, tuple(times[together][1:]), apart, note=notes[together]),
    ]


async def _analyse(clips: Sequence[bytes], url: str, timeout_s: float | None, at_once: int) -> float:
    """Return the seconds until every clip is analysed, with `at_once` concurrent requests."""
    limit = asyncio.Semaphore(at_once)
    async with AsyncAttuneClient(url, timeout_s=timeout_s) as client:

        async def one(clip: bytes) -> None:
            async with limit:
                await client.analyse(clip)

        started_s = time.perf_counter()
        await asyncio.gather(*(one(clip) for clip in clips))
        return time.perf_counter() - started_s


def _executions(url: str) -> tuple[int, int]:
    """Return the numbers of rows and of batches that the server's valence model has run since its start."""
    with contextlib.closing(InferenceServerClient(url)) as server:
        [statistics] = server.get_inference_statistics(VALENCE_MODEL.name).model_stats
    return statistics.inference_count, statistics.execution_count


def _mean_batch(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the mean batch size between two results of `_executions`."""
    return (after[0] - before[0]) / (after[1] - before[1])


def _times(work: Callable[[], None], runs: int) -> tuple[float, ...]:
    work()  # warm-up
    return tuple(_time(work) for _ in range(runs))


def _time(work: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def peak_memory_gib(server_pid: int) -> float:
    """Return the sum of peak resident memory of a server's processes, in GiB; shared memory counts for each."""
    peaks_kb = 0
    for pid, _ in server_processes(server_pid):
        try:
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks_kb += next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue  # the process has ended meanwhile
    return peaks_kb / 2**20
