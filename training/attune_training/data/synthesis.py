"""Sentences read aloud by a synthesiser, so that a corpus of words alone also has speech.

    attune synthesise --emobank emobank.csv --output DIR

The engine is the ``espeak-ng`` program, found on PATH and called as a program; it is GPL and no part of Attune. Which
voice reads a sentence, how high and how fast, is drawn from the seed and the sentence's place in the list, NEVER from
its labels: the synthetic voice carries no emotion, and what a model learns from it about emotion comes from the words.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from attune_training.config import SAMPLE_RATE
from attune_training.data.corpus import CorpusError, open_corpus
from attune_training.data.utterance import Utterance
from attune_weights.files import whole_file, write_json

__all__ = [
    "MANIFEST_COLUMNS",
    "MANIFEST_NAME",
    "VOICES",
    "Reading",
    "SynthesisError",
    "Voice",
    "choose_reading",
    "spoken_text",
    "synthesise",
    "synthesise_command",
]

MANIFEST_NAME = "manifest.csv"
MANIFEST_COLUMNS = (
    "path",
    "transcript",
    "valence",
    "arousal",
    "dominance",
    "speaker",
    "session",
    "category",
    "split",
)

_PROGRAM = "espeak-ng"
_PROGRAMS_AT_ONCE = 2
_LONGEST_READING_S = 60


class SynthesisError(RuntimeError):
    """The synthesiser or a voice of it is missing, or it could not read a sentence."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of espeak-ng: its name (language and variant), usual pitch (0..99) and rate (words a minute).

    ``test_only`` keeps a voice for the test split, so that a test is never read by a voice of the training data.
    """

    name: str
    pitch: int = 50
    rate_wpm: int = 165
    test_only: bool = False


VOICES = (
    Voice("en-us+f1", 52, 165),
    Voice("en-us+f3", 50, 172),
    Voice("en-gb+f4", 48, 160),
    Voice("en-gb-scotland+f5", 52, 168),
    Voice("en-gb-x-gbclan+f3", 46, 158),
    Voice("en-us+m1", 48, 170),
    Voice("en-us+m3", 52, 160),
    Voice("en-gb+m2", 50, 175),
    Voice("en-gb-scotland+m5", 46, 162),
    Voice("en-029+m7", 52, 168),
    Voice("en-gb-x-rp+f2", 50, 165, test_only=True),
    Voice("en-us-nyc+m4", 50, 165, test_only=True),
)
"""Ten voices to train and validate with, and a woman's and a man's that only the test split hears."""

_PITCH_SPREAD = 4
_RATE_SPREAD_WPM = 10


@dataclass(frozen=True, slots=True)
class Reading:
    """How one sentence is read: the voice's name, pitch (0..99) and rate in words a minute."""

    voice: str
    pitch: int
    rate_wpm: int


def choose_reading(voices: Sequence[Voice], split: str, seed: int, index: int) -> Reading:
    """Draw the reading of sentence ``index``: a voice of its split, pitch and rate slightly off the voice's usual ones.

    Raises:
        ValueError: no voice is left for the split.
    """
    candidates = [voice for voice in voices if voice.test_only == (split == "test")]
    if not candidates:
        kind = "test_only voice" if split == "test" else "voice that is not test_only"
        raise ValueError(f"no voice may read the split {split!r}: give at least one {kind}")
    random = np.random.default_rng([seed, index])
    voice = candidates[random.integers(len(candidates))]
    pitch = voice.pitch + random.integers(-_PITCH_SPREAD, _PITCH_SPREAD + 1)
    rate_wpm = voice.rate_wpm + random.integers(-_RATE_SPREAD_WPM, _RATE_SPREAD_WPM + 1)
    return Reading(voice.name, int(pitch), int(rate_wpm))


def spoken_text(transcript: str) -> str:
    """Return the transcript as plain words for espeak-ng, which takes control characters and ``[[`` as commands."""
    spaced = re.sub(r"\s+", " ", transcript).strip()
    plain = "".join(letter for letter in spaced if not unicodedata.category(letter).startswith("C"))
    return re.sub(r"\[(?=\[)", "[ ", plain)


def synthesise(
    sentences: Sequence[Utterance],
    output: Path,
    voices: Sequence[Voice] = VOICES,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Read the sentences aloud into ``output`` and return the manifest's path.

    Writes 16 kHz mono FLAC files in a folder for each voice, ``manifest.csv`` (MANIFEST_COLUMNS; paths relative to it,
    the speaker is the voice's name) and ``synthesis.json``, which says how they were made. A file's name holds a digest
    of all that determines its sound, so a run that was stopped goes on where it was. ``progress`` is called with 1
    after each sentence.

    Raises:
        SynthesisError: espeak-ng is missing, lacks a voice, or cannot read a sentence.
        ValueError: a sentence has no words, or no voice is left for its split.
    """
    engine = _Engine.find()
    engine.check(voices)
    jobs = [_job(engine, index, sentence, voices, seed) for index, sentence in enumerate(sentences)]
    for folder in {job.path.parent for job in jobs}:
        (output / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_PROGRAMS_AT_ONCE) as pool:
        for _ in pool.map(lambda job: _make(engine, job, output), jobs):
            progress(1)
    _write_provenance(output / "synthesis.json", engine, voices, seed, len(sentences))
    return _write_manifest(output / MANIFEST_NAME, sentences, jobs)


@dataclass(frozen=True, slots=True)
class _Engine:
    """The program and its version."""

    program: str
    version: str

    @classmethod
    def find(cls) -> _Engine:
        program = shutil.which(_PROGRAM)
        if program is None:
            raise SynthesisError(
                f"{_PROGRAM} is not installed; it reads the sentences aloud. Install it with your system's package "
                f"manager, such as `apt-get install {_PROGRAM}` or `brew install {_PROGRAM}`"
            )
        banner = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"\d+(\.\d+)+", banner)
        return cls(program, found[0] if found else banner.strip())

    def check(self, voices: Sequence[Voice]) -> None:
        """Refuse voices of a language that this espeak-ng lacks; it would take another one and not say so.

        Its list of variants is not complete, so these cannot be checked.
        """
        listed = subprocess.run([self.program, "--voices"], capture_output=True, text=True, check=True).stdout
        languages = {line.split()[1] for line in listed.splitlines()[1:]}
        for voice in voices:
            if voice.name.split("+")[0] not in languages:
                raise SynthesisError(f"{_PROGRAM} {self.version} has no voice {voice.name!r}: see {_PROGRAM} --voices")

    def read(self, text: str, reading: Reading) -> npt.NDArray[np.float32]:
        """Return the text read aloud, [T] at 16 kHz."""
        options = ["-v", reading.voice, "-p", str(reading.pitch), "-s", str(reading.rate_wpm)]
        # The text goes in as UTF-8 (-b 1) through stdin: on the command line a leading minus would be an option.
        command = [self.program, *options, "-b", "1", "--stdin", "--stdout"]
        try:
            done = subprocess.run(
                command, input=text.encode(), capture_output=True, check=True, timeout=_LONGEST_READING_S
            )
            samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        except subprocess.CalledProcessError as error:
            raise SynthesisError(f"{_PROGRAM} cannot read {text!r}: {error.stderr.decode().strip()}") from error
        except (subprocess.TimeoutExpired, soundfile.SoundFileError) as error:
            raise SynthesisError(f"{_PROGRAM} cannot read {text!r}: {error}") from error
        if not np.any(samples):
            raise SynthesisError(f"{_PROGRAM} makes no sound of {text!r} with the voice {reading.voice}")
        return soxr.resample(samples, rate, SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to make; ``path`` is relative to the output folder."""

    text: str
    reading: Reading
    path: Path


def _job(engine: _Engine, index: int, sentence: Utterance, voices: Sequence[Voice], seed: int) -> _Job:
    text = spoken_text(sentence.transcript)
    if not text:
        raise ValueError(f"sentence {index} has no words to read: {sentence.transcript!r}")
    reading = choose_reading(voices, sentence.split, seed, index)
    determining = json.dumps([engine.version, SAMPLE_RATE, *astuple(reading), text])
    digest = hashlib.sha256(determining.encode()).hexdigest()[:12]
    return _Job(text, reading, Path(reading.voice) / f"{index:06d}-{digest}.flac")


def _make(engine: _Engine, job: _Job, output: Path) -> None:
    """Write the job's file, unless a former run did."""
    path = output / job.path
    if path.is_file():
        return
    with whole_file(path) as partial:
        soundfile.write(partial, engine.read(job.text, job.reading), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _write_manifest(path: Path, sentences: Sequence[Utterance], jobs: Sequence[_Job]) -> Path:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST_COLUMNS)
        for sentence, job in zip(sentences, jobs, strict=True):
            labels = (sentence.valence, sentence.arousal, sentence.dominance)
            origin = (job.reading.voice, sentence.session, sentence.category, sentence.split)
            writer.writerow([job.path.as_posix(), sentence.transcript, *labels, *origin])
    return path


def _write_provenance(path: Path, engine: _Engine, voices: Sequence[Voice], seed: int, count: int) -> None:
    record = {
        "engine": f"{_PROGRAM} {engine.version}",
        "seed": seed,
        "sentences": count,
        "sample_rate_hz": SAMPLE_RATE,
        "note": "synthetic speech: voice, pitch and rate are drawn by seed and carry no label",
        "voices": [asdict(voice) for voice in voices],
    }
    write_json(path, record)


@click.command("synthesise")
@click.option(
    "--emobank",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="EmoBank's table, emobank.csv.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the speech and its manifest.csv. A run that was stopped goes on there.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws voice, pitch and rate.")
def synthesise_command(emobank: Path, output: Path, seed: int) -> None:
    """Read EmoBank's sentences aloud with espeak-ng and write a manifest to train and evaluate on.

    The voices carry no emotion. Two of the twelve read the test part alone.
    """
    try:
        sentences = open_corpus("emobank", emobank, bad_rows="skip").utterances
        with click.progressbar(length=len(sentences), label="Reading aloud", file=sys.stderr) as bar:
            manifest = synthesise(sentences, output, seed=seed, progress=bar.update)
    except (CorpusError, SynthesisError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(manifest)
