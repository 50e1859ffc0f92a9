"""Texts read aloud, each by every voice, to measure what is heard in them.

    attune synthesise --stories shipped --voice en-gb-x-rp+f2 --piper-voice VOICE.onnx --output DIR

Every text gets one recording by each voice, at the voice's usual pitch and rate. The folder's manifest joins recordings
to texts by their ids.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attune_training.config import SAMPLE_RATE
from attune_training.synthesis.engines import ESPEAK, PIPER, Espeak, Piper, Reading, Waveform, spoken_text
from attune_training.synthesis.files import MANIFEST_NAME, PROVENANCE_NAME, Job, file_name, make_all, write_manifest
from attune_weights.files import write_json

__all__ = [
    "DEFAULT_VOICE",
    "Reader",
    "Recording",
    "SpeechError",
    "Text",
    "espeak_reader",
    "find_recordings",
    "piper_reader",
    "read_aloud",
    "read_recordings",
    "read_texts",
]

DEFAULT_VOICE = "en-gb-x-rp+f2"
"""Of espeak-ng; one of the two that no sentence of training is read by."""

RECORDING_COLUMNS = ("path", "id", "text", "voice")

_PITCH, _RATE_WPM = 50, 165


class SpeechError(ValueError):
    """A file of texts, or a folder of recordings, is not what it should be."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text to read; ids are unique."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Reader:
    """A voice: `made_by` is what determines its sound, beside the text."""

    voice: str
    made_by: tuple[object, ...]
    read: Callable[[str], Waveform]


@dataclass(frozen=True, slots=True)
class Recording:
    """One text read by one voice."""

    id: str
    text: str
    voice: str
    path: Path


def espeak_reader(voice: str) -> Reader:
    """Return a voice of espeak-ng; SynthesisError if there is none of that name, or no espeak-ng."""
    engine = Espeak.find()
    engine.check([voice])
    reading = Reading(voice, _PITCH, _RATE_WPM)
    return Reader(
        voice, (f"{ESPEAK} {engine.version}", voice, _PITCH, _RATE_WPM), partial(engine.read, reading=reading)
    )


def piper_reader(voice: Path, program: str = PIPER) -> Reader:
    """Return a voice of piper, from its ONNX file; SynthesisError if it, or the program, is missing."""
    engine = Piper.find(voice, program)
    return Reader(f"{PIPER}-{voice.stem}", (PIPER, engine.digest), engine.read)


def read_texts(path: Path) -> list[Text]:
    """Read texts of a CSV file with the columns `id` and `text`; others are ignored.

    Raises:
        SpeechError: the file cannot be read, lacks a column, has no rows, an empty id or text, or an id twice.
    """
    rows = _rows(path, ("id", "text"))
    texts = [Text(cells["id"].strip(), cells["text"].strip()) for cells in rows]
    if not texts:
        raise SpeechError(f"{path}: there are no rows")
    seen: set[str] = set()
    for number, text in enumerate(texts, start=1):
        if not text.id or not text.text:
            raise SpeechError(f"{path}, row {number}: the id or the text is empty")
        if text.id in seen:
            raise SpeechError(f"{path}, row {number}: the id {text.id!r} comes twice")
        seen.add(text.id)
    return texts


def read_aloud(
    texts: Sequence[Text],
    readers: Sequence[Reader],
    output: Path,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Have each text read by each voice, and return the manifest's path.

    Writes 16 kHz mono FLAC files in a folder for each voice, `manifest.csv` (RECORDING_COLUMNS; paths relative to it)
    and `synthesis.json`. A file's name holds a digest of what determines its audio, so a stopped run goes on.
    `progress` is called with 1 after each recording.

    Raises:
        SynthesisError: a text cannot be read.
        SpeechError: a text has no words, or two voices have the same name.
    """
    names = [reader.voice for reader in readers]
    if len(set(names)) < len(names):
        raise SpeechError(f"voices of the same name: {', '.join(names)}")
    pairs = [(index, text, reader) for reader in readers for index, text in enumerate(texts)]
    jobs = [_job(index, text, reader) for index, text, reader in pairs]
    make_all(jobs, output, progress)
    record = {
        "texts": len(texts),
        "sample_rate_hz": SAMPLE_RATE,
        "note": "synthetic speech: the voice carries no label",
        "voices": {reader.voice: list(reader.made_by) for reader in readers},
    }
    write_json(output / PROVENANCE_NAME, record)
    rows = (
        (job.path.as_posix(), text.id, text.text, reader.voice)
        for job, (_, text, reader) in zip(jobs, pairs, strict=True)
    )
    return write_manifest(output / MANIFEST_NAME, RECORDING_COLUMNS, rows)


def _job(index: int, text: Text, reader: Reader) -> Job:
    line = spoken_text(text.text)
    if not line:
        raise SpeechError(f"the text {text.id!r} has no words to read: {text.text!r}")
    name = file_name(index, [SAMPLE_RATE, *reader.made_by, line])
    return Job(Path(reader.voice) / name, partial(reader.read, line))


def read_recordings(folder: Path) -> list[Recording]:
    """Return the recordings of a folder that `read_aloud` wrote.

    Raises:
        SpeechError: the folder has no such manifest, or a recording is missing.
    """
    rows = _rows(folder / MANIFEST_NAME, RECORDING_COLUMNS)
    found = [Recording(cells["id"], cells["text"], cells["voice"], folder / cells["path"]) for cells in rows]
    missing = [recording.path for recording in found if not recording.path.is_file()]
    if missing:
        raise SpeechError(f"{len(missing)} recordings are missing, such as {missing[0]}: run attune synthesise again")
    return found


def find_recordings(recordings: Sequence[Recording], texts: Sequence[Text]) -> dict[str, list[Recording]]:
    """Return for each voice the recordings of `texts`, in their order.

    Raises:
        SpeechError: there are no recordings, a voice lacks a text, or read it with other words.
    """
    by_voice: dict[str, dict[str, Recording]] = {}
    for recording in recordings:
        by_voice.setdefault(recording.voice, {})[recording.id] = recording
    if not by_voice:
        raise SpeechError("the folder holds no recordings")
    return {voice: [_of(text, voice, found) for text in texts] for voice, found in by_voice.items()}


def _of(text: Text, voice: str, found: Mapping[str, Recording]) -> Recording:
    recording = found.get(text.id)
    if recording is None or recording.text != text.text:
        problem = "was not read" if recording is None else "was read with other words"
        raise SpeechError(f"{text.id!r} {problem} by the voice {voice}: run attune synthesise again")
    return recording


def _rows(path: Path, columns: Sequence[str]) -> list[Mapping[str, str]]:
    """Return the rows of a CSV file, which has at least these columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise SpeechError(f"{path} lacks the columns {', '.join(missing)}")
            rows: list[Mapping[str, str]] = list(reader)
    except OSError as error:
        raise SpeechError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SpeechError(f"{path}: not a CSV file in UTF-8: {error}") from error
    for number, cells in enumerate(rows, start=1):
        if None in cells or None in cells.values():
            raise SpeechError(f"{path}, row {number}: more or fewer fields than the header")
    return rows
