"""The sub-commands that talk to a server: `attune analyse`, `attune play`, `attune models`."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile as sf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attune_client.aio import AsyncAttuneClient
from attune_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL, AttuneClient, MusicStream
from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import MAX_MUSIC_S, MIN_MUSIC_S, MODELS
from attune_client.protocol.tensors import ModelSpec, TensorSpec
from attune_client.results import VAD, SpeechEmotion, TherapySession

MAX_IN_FLIGHT = 8
"""How many recordings `attune analyse` sends at once: enough for the server to batch them."""

AUDIO_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_OUTPUT = click.Path(dir_okay=False, writable=True, path_type=Path)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--url` and `--timeout`, and errors as one line without a traceback."""

    @click.option(
        "--url", envvar="ATTUNE_URL", default=DEFAULT_URL, show_default=True, help="The server's gRPC address."
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        help="Longest wait for an answer, in seconds.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AttuneError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(
                f"{error.filename}: {error.strerror}" if error.filename else str(error)
            ) from None

    return wrapped


# --- attune analyse ---


@dataclass(frozen=True, slots=True)
class _Analysed:
    path: Path
    outcome: SpeechEmotion | AttuneError

    @property
    def failed(self) -> bool:
        return isinstance(self.outcome, AttuneError)

    def to_dict(self) -> dict[str, Any]:
        if isinstance(self.outcome, AttuneError):
            return {"file": str(self.path), "error": {"code": self.outcome.code, "message": str(self.outcome)}}
        return {"file": str(self.path)} | self.outcome.to_dict()


@click.command()
@click.argument("audio", nargs=-1, required=True, type=AUDIO_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array in place of text.")
@server_options
def analyse(audio: tuple[Path, ...], as_json: bool, url: str, timeout_s: float) -> None:
    """Transcribe recordings and recognise the emotion in them.

    Takes WAV, FLAC, MP3, OGG, M4A, AMR, WebM and the like, of at most 10 minutes. A recording that fails does not
    stop the others; the exit status is 1 if any did.
    """
    with Console(stderr=True).status(f"listening to {len(audio)} recording{'s' if len(audio) > 1 else ''}"):
        outcomes = asyncio.run(_analyse_all(audio, url, timeout_s))
    if as_json:
        click.echo(json.dumps([outcome.to_dict() for outcome in outcomes], indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for outcome in outcomes:
            console.print(Text(str(outcome.path), style="bold underline"))
            _print_rows(console, *_outcome_rows(outcome))
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


async def _analyse_all(paths: Iterable[Path], url: str, timeout_s: float) -> list[_Analysed]:
    limit = asyncio.Semaphore(MAX_IN_FLIGHT)
    async with AsyncAttuneClient(url, timeout_s=timeout_s) as client:

        async def one(path: Path) -> _Analysed:
            async with limit:
                try:
                    return _Analysed(path, await client.analyse(path))
                except AttuneError as error:
                    return _Analysed(path, error)

        return list(await asyncio.gather(*(one(path) for path in paths)))


def _outcome_rows(analysed: _Analysed) -> Iterable[tuple[str, str]]:
    if isinstance(analysed.outcome, AttuneError):
        return [("error", str(analysed.outcome))]
    return _speech_rows(analysed.outcome)


# --- attune play ---


@click.command()
@click.argument("audio", type=AUDIO_FILE)
@click.option("-o", "--output", type=_OUTPUT, default=Path("music.wav"), show_default=True, help="WAV file to write.")
@click.option("--session", "session_file", type=_OUTPUT, help="JSON file for everything but the music.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=MIN_MUSIC_S, max=MAX_MUSIC_S),
    default=30.0,
    show_default=True,
    help="Length of the music.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same music.")
@click.option("--engine", help="Music engine by name; the server's own if left out.")
@server_options
def play(
    audio: Path,
    output: Path,
    session_file: Path | None,
    seconds: float,
    seed: int,
    engine: str | None,
    url: str,
    timeout_s: float,
) -> None:
    """Turn a recording into music, written to a WAV file as it arrives."""
    console = Console(highlight=False)
    started_s = time.perf_counter()
    with AttuneClient(url, timeout_s=timeout_s) as client:
        with Console(stderr=True).status("listening"):
            stream = client.play(audio, duration_s=seconds, seed=seed, engine=engine)
        with stream:
            _print_rows(console, *_session_rows(stream.session))
            written_s, first_audio_s = _write_music(stream, output, started_s)
    total_s = time.perf_counter() - started_s
    _print_rows(
        console,
        ("first audio", f"after {first_audio_s:.2f} s"),
        ("total", f"{total_s:.2f} s for {written_s:.1f} s of music in {output}"),
    )
    if session_file is not None:
        session_file.parent.mkdir(parents=True, exist_ok=True)
        session = stream.session.to_dict(first_audio_s=first_audio_s, total_s=total_s)
        session_file.write_text(json.dumps(session, indent=2, ensure_ascii=False) + "\n")


def _speech_rows(speech: SpeechEmotion) -> Iterable[tuple[str, str]]:
    yield "transcript", speech.transcript
    yield "VAD", _vad_text(speech.vad)
    if len(speech.segments) > 1:
        for segment in speech.segments:
            yield f"  {segment.start_s:.1f}-{segment.end_s:.1f} s", _vad_text(segment.vad)
    yield "emotion", speech.emotion


def _session_rows(session: TherapySession) -> Iterable[tuple[str, str]]:
    if session.speech is not None:
        yield from _speech_rows(session.speech)
    if session.prompt.retrieved_emotion is not None and session.prompt.similarity is not None:
        yield "retrieved", f"{session.prompt.retrieved_emotion} (similarity {session.prompt.similarity:.2f})"
        yield "description", session.prompt.description or ""
    yield "prompt", f"{session.prompt.prompt} (writer: {session.prompt.prompt_writer})"
    yield "engine", session.engine


def _vad_text(vad: VAD) -> str:
    return f"valence {vad.valence:.2f}  arousal {vad.arousal:.2f}  dominance {vad.dominance:.2f}"


def _print_rows(console: Console, *rows: tuple[str, str]) -> None:
    """Two columns; the values are plain text, whatever brackets the words hold."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", min_width=12, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, Text(value))
    console.print(grid)


def _write_music(stream: MusicStream, output: Path, started_s: float) -> tuple[float, float]:
    """Write the chunks as they come; returns seconds of music, and when the first chunk came."""
    output.parent.mkdir(parents=True, exist_ok=True)
    rate = stream.session.sample_rate
    first = next(stream)
    first_audio_s = time.perf_counter() - started_s
    with sf.SoundFile(output, "w", rate, first.shape[1], "PCM_16", format="WAV") as file:
        for chunk in _chain(first, stream):
            file.write(chunk)
        return file.frames / rate, first_audio_s


def _chain(first: np.ndarray, rest: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    yield first
    yield from rest


# --- attune models ---


@click.command()
@server_options
def models(url: str, timeout_s: float) -> None:
    """List the server's models, their state and their tensors."""
    with AttuneClient(url, timeout_s=timeout_s) as client:
        statuses = client.models()
    table = Table("model", "state", "inputs", "outputs", box=None, pad_edge=False)
    for status in statuses:
        spec = MODELS.get(status.name)
        state = status.state or "NOT LOADED"
        table.add_row(
            status.name, f"{state} {status.reason}".strip(), _tensors(spec, "inputs"), _tensors(spec, "outputs")
        )
    Console().print(table)


def _tensors(spec: ModelSpec | None, side: str) -> str:
    tensors: tuple[TensorSpec, ...] = getattr(spec, side, ())
    return ", ".join(f"{t.name}{'?' if t.optional else ''}" for t in tensors)
