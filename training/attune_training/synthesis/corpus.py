"""A corpus's sentences read aloud by espeak-ng, so that a text corpus also has audio.

    attune synthesise --emobank emobank.csv --output DIR

The voice, pitch and rate of a sentence are drawn from the seed and its index, NEVER from its labels: the synthetic
speech carries no emotion, so a model can learn emotion from its text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from attune_training.config import SAMPLE_RATE
from attune_training.data.utterance import Utterance
from attune_training.synthesis.engines import ESPEAK, Espeak, Reading, spoken_text
from attune_training.synthesis.files import MANIFEST_NAME, PROVENANCE_NAME, Job, file_name, make_all, write_manifest
from attune_weights.files import write_json

__all__ = ["MANIFEST_COLUMNS", "VOICES", "Voice", "choose_reading", "synthesise"]

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


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of espeak-ng: its name (language and variant), usual pitch (0..99) and rate (words a minute).

    `test_only` reserves a voice for the test split, so that no test voice occurs in the training data.
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
"""Ten voices for training and validation, and a female and a male one for the test split alone."""

_PITCH_SPREAD = 4
_RATE_SPREAD_WPM = 10


def choose_reading(voices: Sequence[Voice], split: str, seed: int, index: int) -> Reading:
    """Draw the parameters of sentence `index`: a voice of its split, pitch and rate near the voice's usual ones.

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


def synthesise(
    sentences: Sequence[Utterance],
    output: Path,
    voices: Sequence[Voice] = VOICES,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Synthesise the sentences into `output` and return the manifest's path.

    Writes 16 kHz mono FLAC files in a folder for each voice, `manifest.csv` (MANIFEST_COLUMNS; paths relative to it,
    the speaker is the voice's name) and `synthesis.json`, which records how they were made. A file's name contains a
    digest of everything that determines its audio, so an interrupted run resumes. `progress` is called with 1 after
    each sentence.

    Raises:
        SynthesisError: espeak-ng is missing, lacks a voice, or fails on a sentence.
        ValueError: a sentence has no words, or no voice is left for its split.
    """
    engine = Espeak.find()
    engine.check([voice.name for voice in voices])
    readings = [choose_reading(voices, sentence.split, seed, index) for index, sentence in enumerate(sentences)]
    texts = [_plain(index, sentence.transcript) for index, sentence in enumerate(sentences)]
    jobs = [
        _job(engine, index, text, reading) for index, (text, reading) in enumerate(zip(texts, readings, strict=True))
    ]
    make_all(jobs, output, progress)
    record = {
        "engine": f"{ESPEAK} {engine.version}",
        "seed": seed,
        "sentences": len(sentences),
        "sample_rate_hz": SAMPLE_RATE,
        "note": "synthetic speech: voice, pitch and rate are drawn by seed and carry no label",
        "voices": [asdict(voice) for voice in voices],
    }
    write_json(output / PROVENANCE_NAME, record)
    rows = (_row(sentence, job, reading) for sentence, job, reading in zip(sentences, jobs, readings, strict=True))
    return write_manifest(output / MANIFEST_NAME, MANIFEST_COLUMNS, rows)


def _plain(index: int, transcript: str) -> str:
    text = spoken_text(transcript)
    if not text:
        raise ValueError(f"sentence {index} has no words to read: {transcript!r}")
    return text


def _job(engine: Espeak, index: int, text: str, reading: Reading) -> Job:
    name = file_name(index, [engine.version, SAMPLE_RATE, *astuple(reading), text])
    return Job(Path(reading.voice) / name, partial(engine.read, text, reading))


def _row(sentence: Utterance, job: Job, reading: Reading) -> list[object]:
    labels = (sentence.valence, sentence.arousal, sentence.dominance)
    origin = (reading.voice, sentence.session, sentence.category, sentence.split)
    return [job.path.as_posix(), sentence.transcript, *labels, *origin]
