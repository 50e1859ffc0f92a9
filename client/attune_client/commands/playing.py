"""`attune play`: music for a recording, a text or an emotion, written as it is received."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from attune_client.client import AttuneClient, MusicStream
from attune_client.commands.analysis import HELP_LABEL, speech_rows, vad_text
from attune_client.commands.audio_output import (
    FORMATS,
    STDOUT,
    AudioOutput,
    Destination,
    check_writable,
    readable_s,
)
from attune_client.commands.options import (
    AUDIO_FILE,
    STDIN,
    JsonObject,
    Numbers,
    RealRange,
    Words,
    country_option,
    deadline_option,
    json_option,
    other_languages_option,
    read_audio,
    server_options,
)
from attune_client.commands.patience import patiently
from attune_client.commands.printing import Printer, echo_json, json_text
from attune_client.failures import INTERRUPTED, describe
from attune_client.help_lines import crisis_notice
from attune_client.interruption import Interrupted, Interruption, Interruptions
from attune_client.protocol.bounds import DEFAULT_MUSIC_S, MAX_MUSIC_S, MAX_SEED, MIN_MUSIC_S, VAD_LIMITS
from attune_client.protocol.errors import AttuneError, ServerError
from attune_client.results import TherapySession

__all__ = ["play"]

_ENDINGS = ", ".join(f".{name}" for name in FORMATS)


@click.command()
@click.argument("audio", required=False, type=AUDIO_FILE)
@click.option("--text", type=Words(), help="Music for these words, in place of a recording.")
@click.option(
    "--emotion",
    type=Words(),
    help="Music for one of the 40 emotions, which the README lists, in any case; --vad may shade it, and never turns "
    "it into another.",
)
@click.option(
    "--vad", type=Numbers(("V", "A", "D"), *VAD_LIMITS), help="Music for valence, arousal, dominance, each 1 to 5."
)
@click.option(
    "--spec",
    type=JsonObject(),
    help="Music as a JSON file says: a music_spec, or a whole session file, which plays the same piece again.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default=Path("music.wav"),
    show_default=True,
    help=f"File to write, in the format of its name ({_ENDINGS}); - is standard output.",
)
@click.option("--format", "format_name", type=click.Choice(tuple(FORMATS)), help="Format for standard output.")
@click.option("-f", "--force", is_flag=True, help="Write over files that exist.")
@click.option(
    "--session",
    "session_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file for all but the music.",
)
@json_option
@other_languages_option
@country_option
@click.option(
    "--seconds",
    type=RealRange(min=MIN_MUSIC_S, max=MAX_MUSIC_S),
    help=f"Length of the music.  [default: {DEFAULT_MUSIC_S:g}, or the session's of --spec]",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Same seed, same music; drawn and told if left out.")
@click.option("--engine", type=Words(), help="Music engine by name; the server's own if left out.")
@deadline_option
@server_options
def play(
    audio: Path | None,
    text: str | None,
    emotion: str | None,
    vad: tuple[float, float, float] | None,
    spec: dict[str, Any] | None,
    output: Path,
    format_name: str | None,
    force: bool,
    session_file: Path | None,
    as_json: bool,
    seconds: float | None,
    seed: int | None,
    engine: str | None,
    other_languages: str | None,
    country: str | None,
    deadline_s: float | None,
    url: str,
    timeout_s: float | None,
) -> None:
    """Turn a recording into music, written to a file as it arrives.

    AUDIO is a recording, - standard input. Or say --text, --emotion, --vad or --spec in place of one.
    """
    wish = _Wish(audio, text, emotion, vad, spec, seconds, seed, engine, other_languages, deadline_s)
    wish.check()
    wish.take_session()
    destination = _destination(output, format_name)
    _check_places(destination, session_file, audio, as_json=as_json, overwrite=force)
    started_s = time.perf_counter()
    with Interruptions() as interruptions, AttuneClient(url, timeout_s=timeout_s, retries=patiently()) as client:
        with Console(stderr=True).status("listening"):
            stream = wish.send(client)
        printer = None if as_json else Printer(err=destination.is_stdout)
        if printer is not None:
            printer.rows(*_session_rows(stream.session))
            if stream.session.crisis:
                printer.paragraphs(HELP_LABEL, crisis_notice(country))
        with stream:
            recorder = _Recorder(destination, overwrite=force, started_s=started_s)
            recorder.record(stream, interruptions)
        result = recorder.result(stream.session)
        if result is not None:
            notice = crisis_notice(country) if stream.session.crisis else None
            _tell(result, session_file, notice, as_json=as_json)
        if printer is not None and recorder.stopped_by is None:
            printer.rows(*recorder.rows())
        recorder.raise_what_stopped_it()


# --- before anything is sent ---


@dataclass(slots=True)
class _Wish:
    """The source of the music and its options."""

    audio: Path | None
    text: str | None
    emotion: str | None
    vad: tuple[float, ...] | None
    spec: dict[str, Any] | None
    seconds: float | None
    seed: int | None
    engine: str | None
    other_languages: str | None
    deadline_s: float | None

    def check(self) -> None:
        """Fail unless there is exactly one source; an emotion may have a VAD, and a specification a text."""
        sources = {"AUDIO": self.audio, "--text": self.text, "--emotion": self.emotion, "--vad": self.vad}
        given = {name for name, value in (sources | {"--spec": self.spec}).items() if value is not None}
        if not given:
            raise click.UsageError("say what the music is for: AUDIO, --text, --emotion, --vad or --spec")
        if len(given) > 1 and given not in ({"--emotion", "--vad"}, {"--spec", "--text"}):
            raise click.UsageError(f"{' and '.join(sorted(given))} exclude each other")

    def take_session(self) -> None:
        """Take a session file as the specification; options that were not given are those of the session."""
        if self.spec is None or "music_spec" not in self.spec:
            return
        session, self.spec = self.spec, self.spec["music_spec"]
        self.text = self.text or session.get("prompt")
        self.seconds = self.seconds or session.get("duration_s")
        self.seed = session.get("seed") if self.seed is None else self.seed
        self.engine = self.engine or session.get("engine")

    def send(self, client: AttuneClient) -> MusicStream:
        """Request the music; returns once the session is known, before the audio."""
        return client.play(
            None if self.audio is None else read_audio(self.audio),
            text=self.text,
            emotion=self.emotion,
            vad=self.vad,
            spec=self.spec,
            duration_s=self.seconds or DEFAULT_MUSIC_S,
            seed=self.seed,
            engine=self.engine,
            other_languages=self.other_languages,
            deadline_s=self.deadline_s,
        )


def _destination(path: Path, format_name: str | None) -> Destination:
    """Return the destination, in the requested format or that of the extension."""
    named = path.suffix.lower().removeprefix(".")
    if path == STDOUT:
        return Destination(path, format_name or "wav")
    if named in FORMATS and format_name in (None, named):
        return Destination(path, named)
    if named in FORMATS:
        raise click.UsageError(
            f"{click.format_filename(path)} is the name of another format than --format {format_name}"
        )
    if format_name is None and (not path.exists() or path.is_file()):
        raise click.UsageError(
            f"{click.format_filename(path)} names no format: end it in one of {_ENDINGS}, or give --format"
        )
    return Destination(path, format_name or "wav")


def _check_places(
    destination: Destination, session_file: Path | None, audio: Path | None, *, as_json: bool, overwrite: bool
) -> None:
    """Fail for files that cannot be written or must not be overwritten."""
    if session_file == STDOUT:
        raise click.UsageError("--json prints to standard output what --session writes to a file")
    if destination.is_stdout and as_json:
        raise click.UsageError("standard output cannot hold the music and the JSON: write one of them to a file")
    if destination.is_stdout and sys.stdout is None:
        raise click.UsageError("there is no standard output")
    if destination.is_stdout and sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: send the music to a file or to a program")
    places = [path for path in (destination.path, session_file) if path not in (None, STDOUT)]
    others = [path for path in (audio,) if path not in (None, STDIN)]
    for path in places:
        if any(_same(path, other) for other in others):
            raise click.UsageError(f"{click.format_filename(path)} is named for two purposes")
        others.append(path)
        check_writable(path, overwrite=overwrite)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() and (one.is_file() or not one.exists())


# --- the music ---


class _Recorder:
    """Writes a stream's music until it ends or is interrupted.

    The file is valid in any case; `stopped_by` is the exception that ended it early.
    """

    def __init__(self, destination: Destination, *, overwrite: bool, started_s: float) -> None:
        self._destination = destination
        self._overwrite = overwrite
        self._started_s = started_s
        self._output: AudioOutput | None = None
        self._kept_s = 0.0
        self._first_audio_s = 0.0
        self._total_s = 0.0
        self.stopped_by: BaseException | None = None

    def record(self, stream: MusicStream, interruptions: Interruptions) -> None:
        """Write every chunk as it is received; exceptions are stored in `stopped_by`."""
        try:
            with _progress(stream.session.duration_s) as show:
                for chunk in stream:
                    with interruptions.held():
                        output = self._output or self._open(stream.session.sample_rate, chunk.shape[1])
                        output.write(chunk)
                    show(output.seconds)
            if self._output is None:
                raise ServerError("the server sent no music")
        except BaseException as error:
            self.stopped_by = error
        try:
            with interruptions.held():
                self._close()
        except KeyboardInterrupt as interruption:
            self.stopped_by = self.stopped_by or interruption
        self._total_s = time.perf_counter() - self._started_s

    def _open(self, rate: int, channels: int) -> AudioOutput:
        self._first_audio_s = time.perf_counter() - self._started_s
        self._output = AudioOutput(self._destination, rate, channels, overwrite=self._overwrite)
        return self._output

    def _close(self) -> None:
        if self._output is None:
            return
        try:
            self._output.close()
        except OSError as error:
            self.stopped_by = self.stopped_by or error
        self._kept_s = self._output.seconds
        if isinstance(self.stopped_by, OSError) and self._destination.is_regular:
            self._kept_s = readable_s(self._destination.path)
            if not self._kept_s:
                self._destination.path.unlink(missing_ok=True)

    def result(self, session: TherapySession) -> dict[str, Any] | None:
        """Return the session and how it was written; None if there is no music."""
        if not self._kept_s:
            return None
        return session.to_dict(first_audio_s=self._first_audio_s, total_s=self._total_s) | {
            "music": {
                "file": click.format_filename(self._destination.path),
                "format": self._destination.format_name,
                "seconds": round(self._kept_s, 3),
                "complete": self.stopped_by is None,
            }
        }

    def rows(self) -> Iterable[tuple[str, str]]:
        """Return the last rows of the printed output."""
        yield "first audio", f"after {self._first_audio_s:.2f} s"
        yield "total", f"{self._total_s:.2f} s for {self._kept_s:.1f} s of music in {self._destination.name}"

    def raise_what_stopped_it(self) -> None:
        """Raise the error that ended the recording, with a note on the file that was kept."""
        kept = (
            f"{self._kept_s:.1f} s of music were kept in {self._destination.name}"
            if self._kept_s
            else "no music was kept"
        )
        match self.stopped_by:
            case None:
                return
            case Interruption(status=status):
                click.echo(f"interrupted; {kept}", err=True)
                raise Interrupted(status)
            case KeyboardInterrupt():
                click.echo(f"interrupted; {kept}", err=True)
                raise SystemExit(INTERRUPTED)
            case AttuneError() | OSError():
                raise click.ClickException(f"{describe(self.stopped_by)}; {kept}")
            case _:
                raise self.stopped_by


@contextlib.contextmanager
def _progress(total_s: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on standard error, if that is a terminal; yields a setter of the seconds received."""
    console = Console(stderr=True)
    columns = (
        TextColumn("writing"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total_s)
        yield lambda seconds: progress.update(task, completed=seconds)


# --- output ---


def _tell(result: dict[str, Any], session_file: Path | None, notice: str | None, *, as_json: bool) -> None:
    if session_file is not None:
        # What the crisis rule found is for the moment: a file is kept, and may come into other hands.
        kept = {name: value for name, value in result.items() if name != "crisis"}
        session_file.write_text(json_text(kept) + "\n", encoding="utf-8")
    if as_json:
        echo_json(result if notice is None else result | {"crisis_notice": notice})


def _session_rows(session: TherapySession) -> Iterable[tuple[str, str]]:
    if session.speech is not None:
        yield from speech_rows(session.speech)
    else:
        if session.vad is not None:
            yield "VAD", vad_text(session.vad)
        if session.emotion is not None:
            yield "emotion", session.emotion
    prompt = session.prompt
    if prompt.retrieved_emotion is not None and prompt.similarity is not None:
        yield "retrieved", f"{prompt.retrieved_emotion} (similarity {prompt.similarity:.2f})"
    if prompt.description is not None:
        yield "description", prompt.description
    yield "prompt", f"{prompt.prompt} (writer: {prompt.prompt_writer})"
    yield "engine", session.engine
    yield "seed", str(session.seed)
