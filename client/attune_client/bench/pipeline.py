"""`attune bench pipeline`: the served pipeline as a user meets it.

    attune serve -- attune bench pipeline samples/*.wav

Measures the time to the first audio of a recording, against the recording's own length; ten recordings in one
`attune analyse` call, against ten calls; and a minute of music, against real time.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import soundfile as sf

from attune_client.bench.report import Row, hardware_line, json_line, markdown_table
from attune_client.client import AttuneClient, MusicStream
from attune_client.commands import AUDIO_FILE, server_options

CLIPS = 10
MUSIC_S = 60.0


@click.command()
@click.argument("audio", nargs=-1, required=True, type=AUDIO_FILE)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Counted runs of each.")
@click.option("--server-pid", type=int, envvar="ATTUNE_SERVER_PID", help="To report the server's peak memory.")
@server_options
def pipeline(audio: tuple[Path, ...], runs: int, server_pid: int | None, url: str, timeout_s: float) -> None:
    """Time a running server on recordings: first audio, ten recordings at once, a minute of music."""
    click.echo(hardware_line())
    with AttuneClient(url, timeout_s=timeout_s) as client:
        rows = [*_first_audio(client, audio, runs), *_minute_of_music(client, audio[0], runs)]
    rows += _ten_recordings(audio, runs, url)
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
    """From the first answer, which holds everything but the music, to the last chunk."""

    def play() -> float:
        with client.play(path, duration_s=MUSIC_S) as stream:
            return _time(lambda: _drain(stream))

    length = Row(f"{MUSIC_S:.0f} s of music: its length", (MUSIC_S,))
    return [length, Row(f"{MUSIC_S:.0f} s of music", tuple(play() for _ in range(runs)), length.name)]


def _drain(stream: MusicStream) -> None:
    for _ in stream:
        pass


def _ten_recordings(audio: Sequence[Path], runs: int, url: str) -> list[Row]:
    clips = [str(path) for path in itertools.islice(itertools.cycle(audio), CLIPS)]

    def one_by_one() -> None:
        for clip in clips:
            _analyse([clip], url)

    pairs = [(_time(one_by_one), _time(lambda: _analyse(clips, url))) for _ in range(runs)]
    apart, together = zip(*pairs, strict=True)
    baseline = f"{CLIPS} `attune analyse` calls"
    return [Row(baseline, apart), Row(f"one call with {CLIPS} recordings", together, baseline)]


def _analyse(clips: list[str], url: str) -> None:
    command = [sys.executable, "-m", "attune_client", "analyse", "--json", "--url", url, *clips]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _times(work: Callable[[], None], runs: int) -> tuple[float, ...]:
    work()  # to warm up
    return tuple(_time(work) for _ in range(runs))


def _time(work: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def peak_memory_gib(server_pid: int) -> float:
    """Sum of the peak resident memory of a server and its models, in GiB; what they share counts for each."""
    peaks_kb = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == server_pid:
                status = (process / "status").read_text().splitlines()
                peaks_kb += next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue  # it ended meanwhile
    return peaks_kb / 2**20
