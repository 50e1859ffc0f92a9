"""The programs that read aloud: espeak-ng and piper, found on PATH and run as subprocesses.

Both are GPL and no part of Attune: nothing of them is imported. They get one line of text at a time.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from attune_training.config import SAMPLE_RATE

__all__ = ["Espeak", "Piper", "Reading", "SynthesisError", "spoken_text"]

ESPEAK, PIPER = "espeak-ng", "piper"

_LONGEST_READING_S = 300
_SENTENCE_PAUSE_S = 0.3  # piper's own default is none at all: people pause between sentences

Waveform = npt.NDArray[np.float32]


class SynthesisError(RuntimeError):
    """The synthesiser or a voice is missing, or a text could not be synthesised."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How espeak-ng reads a sentence: `voice` (language and variant), pitch (0..99) and rate, in words a minute."""

    voice: str
    pitch: int
    rate_wpm: int


def spoken_text(transcript: str) -> str:
    """Return the transcript as one plain line; control characters and `[[` would be commands to a synthesiser."""
    spaced = re.sub(r"\s+", " ", transcript).strip()
    plain = "".join(letter for letter in spaced if not unicodedata.category(letter).startswith("C"))
    return re.sub(r"\[(?=\[)", "[ ", plain)


@dataclass(frozen=True, slots=True)
class Espeak:
    """espeak-ng and its version."""

    program: str
    version: str

    @classmethod
    def find(cls) -> Espeak:
        """Return the one on PATH; SynthesisError if there is none."""
        program = shutil.which(ESPEAK)
        if program is None:
            raise SynthesisError(
                f"{ESPEAK} is not installed; it reads the sentences aloud. Install it with your system's package "
                f"manager, such as `apt-get install {ESPEAK}` or `brew install {ESPEAK}`"
            )
        banner = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"\d+(\.\d+)+", banner)
        return cls(program, found[0] if found else banner.strip())

    def check(self, voices: Sequence[str]) -> None:
        """Raise SynthesisError for a language that this espeak-ng lacks; it would silently use another one.

        Its list of variants is not complete, so variants cannot be checked.
        """
        listed = subprocess.run([self.program, "--voices"], capture_output=True, text=True, check=True).stdout
        languages = {line.split()[1] for line in listed.splitlines()[1:]}
        for voice in voices:
            if voice.split("+")[0] not in languages:
                raise SynthesisError(f"{ESPEAK} {self.version} has no voice {voice!r}: see {ESPEAK} --voices")

    def read(self, text: str, reading: Reading) -> Waveform:
        """Return the synthesised text, [T] at 16 kHz; SynthesisError if it cannot be read."""
        options = ["-v", reading.voice, "-p", str(reading.pitch), "-s", str(reading.rate_wpm)]
        # The text goes in as UTF-8 (-b 1) through stdin: on the command line a leading minus would be an option.
        return _run([self.program, *options, "-b", "1", "--stdin", "--stdout"], text)


@dataclass(frozen=True, slots=True)
class Piper:
    """piper with one voice; `digest` is the SHA-256 of the voice's file.

    Its readings differ a little from run to run, since it draws its prosody without a seed.
    """

    program: str
    voice: Path
    digest: str

    @classmethod
    def find(cls, voice: Path, program: str = PIPER) -> Piper:
        """Return the program on PATH, or at a path, with the voice in an ONNX file; SynthesisError without either."""
        found = shutil.which(program)
        if found is None:
            raise SynthesisError(
                f"{program} cannot be run; install piper in a virtual environment of its own "
                "(`pip install piper-tts`) and give its path: --piper ENVIRONMENT/bin/piper"
            )
        for file in (voice, voice.with_name(f"{voice.name}.json")):
            if not file.is_file():
                raise SynthesisError(
                    f"the voice of piper has no file {file}: an .onnx file with its .onnx.json is needed"
                )
        return cls(found, voice, hashlib.sha256(voice.read_bytes()).hexdigest())

    def read(self, text: str) -> Waveform:
        """Return the synthesised text, [T] at 16 kHz; SynthesisError if it cannot be read."""
        command = [self.program, "--model", str(self.voice), "--sentence-silence", str(_SENTENCE_PAUSE_S)]
        return _run([*command, "--output-file", "-"], f"{text}\n")


def _run(command: Sequence[str], text: str) -> Waveform:
    """Run a synthesiser that takes text on stdin and writes a WAV file to stdout."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True, timeout=_LONGEST_READING_S)
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    except subprocess.CalledProcessError as error:
        raise SynthesisError(f"{name} cannot read {text.strip()!r}: {_last_line(error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired, soundfile.SoundFileError) as error:
        raise SynthesisError(f"{name} cannot read {text.strip()!r}: {error}") from error
    if not np.any(samples):
        raise SynthesisError(f"{name} makes no sound of {text.strip()!r}")
    return soxr.resample(samples, rate, SAMPLE_RATE)


def _last_line(output: bytes) -> str:
    """Return what a program said last; before it may stand a traceback."""
    return (output.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
