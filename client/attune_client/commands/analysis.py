"""`attune analyse`: transcripts and emotions of recordings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from attune_client.aio import AsyncAttuneClient
from attune_client.commands.options import (
    AUDIO_NAME,
    STDIN,
    audio_name,
    country_option,
    deadline_option,
    json_option,
    other_languages_option,
    read_audio,
    server_options,
)
from attune_client.commands.patience import patiently
from attune_client.commands.printing import Printer, echo_json
from attune_client.help_lines import crisis_notice
from attune_client.protocol.errors import AttuneError
from attune_client.protocol.models import ENGLISH
from attune_client.results import VAD, SpeechEmotion

__all__ = ["HELP_LABEL", "analyse", "speech_rows", "vad_text"]

HELP_LABEL = "help"
"""Label of the lines that say where to find help."""

MAX_IN_FLIGHT = 8
"""Number of concurrent requests of `attune analyse`: enough for the server to batch them."""


@dataclass(frozen=True, slots=True)
class _Analysed:
    path: Path
    outcome: SpeechEmotion | AttuneError

    @property
    def failed(self) -> bool:
        return isinstance(self.outcome, AttuneError)

    @property
    def has_crisis(self) -> bool:
        return isinstance(self.outcome, SpeechEmotion) and bool(self.outcome.crisis)

    def to_dict(self, country: str | None) -> dict[str, Any]:
        file = {"file": click.format_filename(self.path)}
        if isinstance(self.outcome, AttuneError):
            return file | {"error": {"code": self.outcome.code, "message": str(self.outcome)}}
        notice = {"crisis_notice": crisis_notice(country)} if self.has_crisis else {}
        return file | self.outcome.to_dict() | notice


@click.command()
@click.argument("audio", nargs=-1, required=True, type=AUDIO_NAME)
@other_languages_option
@country_option
@json_option
@deadline_option
@server_options
def analyse(
    audio: tuple[Path, ...],
    other_languages: str | None,
    country: str | None,
    as_json: bool,
    deadline_s: float | None,
    url: str,
    timeout_s: float | None,
) -> None:
    """Transcribe recordings and recognise the emotion in them.

    Takes WAV, FLAC, MP3, OGG, M4A, AMR, WebM and the like, of at most 10 minutes; - is standard input. Results come in
    the order of the recordings, --json as one array. One that fails does not stop the others; the exit
    status is 1 if any did.
    """
    if audio.count(STDIN) > 1:
        raise click.UsageError("standard input (-) can be read once only")
    with Console(stderr=True).status(f"listening to {len(audio)} recording{'s' if len(audio) > 1 else ''}"):
        outcomes = asyncio.run(_analyse_all(audio, other_languages, deadline_s, url, timeout_s))
    if as_json:
        echo_json([outcome.to_dict(country) for outcome in outcomes])
    else:
        printer = Printer()
        for outcome in outcomes:
            printer.heading("file", audio_name(outcome.path))
            printer.rows(*_outcome_rows(outcome))
        if any(outcome.has_crisis for outcome in outcomes):
            printer.paragraphs(HELP_LABEL, _places(outcomes) + crisis_notice(country))
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


async def _analyse_all(
    paths: Iterable[Path], other_languages: str | None, deadline_s: float | None, url: str, timeout_s: float | None
) -> list[_Analysed]:
    limit = asyncio.Semaphore(MAX_IN_FLIGHT)
    async with AsyncAttuneClient(url, timeout_s=timeout_s, retries=patiently()) as client:

        async def one(path: Path) -> _Analysed:
            async with limit:
                try:
                    audio = read_audio(path)
                    speech = await client.analyse(audio, other_languages=other_languages, deadline_s=deadline_s)
                    return _Analysed(path, speech)
                except AttuneError as error:
                    return _Analysed(path, error)

        return list(await asyncio.gather(*(one(path) for path in paths)))


def _places(outcomes: list[_Analysed]) -> str:
    """Return a line that names the recordings whose words speak of a crisis; nothing for the only recording."""
    if len(outcomes) == 1:
        return ""
    names = dict.fromkeys(audio_name(outcome.path) for outcome in outcomes if outcome.has_crisis)
    return f"This is about {', '.join(names)}.\n"


def _outcome_rows(analysed: _Analysed) -> Iterable[tuple[str, str]]:
    if isinstance(analysed.outcome, AttuneError):
        return [("error", str(analysed.outcome))]
    return speech_rows(analysed.outcome)


def speech_rows(speech: SpeechEmotion) -> Iterable[tuple[str, str]]:
    """Return the result as labels and values."""
    yield "transcript", speech.transcript
    if speech.language != ENGLISH:
        yield "language", f"{speech.language} (probability {speech.language_probability:.2f}); by the voice alone"
    yield "VAD", vad_text(speech.vad)
    if len(speech.segments) > 1:
        for segment in speech.segments:
            yield f"  {segment.start_s:.1f}-{segment.end_s:.1f} s", f"{vad_text(segment.vad)}  {segment.emotion}"
    unsure = f" (unsure; perhaps {' or '.join(speech.neighbours)})" if speech.is_unsure else ""
    yield "emotion", speech.emotion + unsure


def vad_text(vad: VAD) -> str:
    """Format the three values with their names."""
    return f"valence {vad.valence:.2f}  arousal {vad.arousal:.2f}  dominance {vad.dominance:.2f}"
