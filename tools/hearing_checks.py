"""The other figures of hearing.md: voice without words, narrations, and repetitive recordings.

    python -m tools.hearing_checks voice DATA/ravdess
    python -m tools.hearing_checks narrations DATA/cremad/audio DATA/ravdess
    python -m tools.hearing_checks repetition DATA/ravdess

Run from the repository's root, after `attune export`.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attune_ensemble.serving.local import LocalModels
from attune_ensemble.speech.audio import decode_speech
from attune_ensemble.speech.segmentation import Span, stack
from attune_ensemble.speech.transcription import Transcriber

MODEL_FOLDER = Path("model_repository")
RATE = 16_000
PAUSES_S = (0.1, 0.4, 1.0)
SENTENCES = {
    "01": "Kids are talking by the door",
    "02": "Dogs are sitting by the door",
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
# Valence, arousal and dominance of RAVDESS's eight emotions, as derived for training.
TARGETS = {
    **{"01": (3, 2.5, 3), "02": (3.6, 2, 3.2), "03": (4.3, 3.7, 3.5), "04": (1.9, 2.2, 2.2)},
    **{"05": (1.7, 4.2, 4), "06": (1.9, 3.8, 2.1), "07": (2, 3.1, 3.2), "08": (3.4, 4, 3)},
}

Waveform = npt.NDArray[np.float32]


def sentence(file: Path) -> str:
    """Return the sentence of a RAVDESS or CREMA-D clip, from its file name."""
    parts = re.split("[_-]", file.stem)
    return SENTENCES[parts[1] if "_" in file.stem else parts[4]]


def voice(folders: Sequence[Path]) -> None:
    """Correlation of the regressors with the targets: with the words, without, and with wrong words."""
    models = LocalModels(MODEL_FOLDER)
    files = sorted(folders[0].glob("*-0[12]-0[12]-01-2[1-4].flac"))[::2]
    target = np.array([TARGETS[file.stem.split("-")[2]] for file in files])
    for label, words in (("words", None), ("none", ""), ("Thank you.", "Thank you.")):
        rows = []
        for file in files:
            waveform = decode_speech(file.read_bytes())
            text = f"{sentence(file)}." if words is None else words
            inputs = {
                "waveform": stack(waveform, [Span(0, len(waveform))]),
                "num_samples": np.array([[len(waveform)]]),
                "transcript": np.array([[text.encode()]], dtype=np.object_),
            }
            rows.append(models.call("emotion_recognition", inputs)["vad"][0])
        predicted = np.array(rows)
        print(label, [round(np.corrcoef(predicted[:, i], target[:, i])[0, 1], 3) for i in range(3)], len(files))


def narrations(folders: Sequence[Path]) -> None:
    """Word error rate and time of eight narrations of twenty clips each."""
    transcriber, rng = _transcriber(), random.Random(1)
    pools = [
        sorted(file for file in folder.iterdir() if file.suffix in (".opus", ".ogg", ".flac")) for folder in folders
    ]
    wrong = total = 0
    sound_s = took_s = 0.0
    for number in range(8):
        files = rng.sample(pools[-1] if number % 4 == 3 else pools[0], 20)
        pieces = [piece for file in files for piece in (_normal(file), _pause(rng.choice(PAUSES_S)))]
        waveform = np.concatenate(pieces)
        started_s = time.perf_counter()
        recognised = " ".join(segment.transcript for segment in transcriber.transcribe(waveform))
        took_s += time.perf_counter() - started_s
        said = _words(" ".join(map(sentence, files)))
        wrong, total = wrong + _distance(said, _words(recognised)), total + len(said)
        sound_s += len(waveform) / RATE
    print(f"{wrong / total:.1%} of {total} words wrong, {took_s:.1f} s for {sound_s:.0f} s")


def repetition(folders: Sequence[Path]) -> None:
    """Time and lost words of recordings of three minutes with the same sentence repeated."""
    transcriber = _transcriber()
    files = sorted(folders[0].glob("*.flac"))
    one_sentence = [
        f for f in files if "-01-01-" in f.name and f.stem.split("-")[4] == "01" and f.stem[-2:] in ("05", "11")
    ]
    sets = {
        "one clip": one_sentence[:1],
        "one sentence": one_sentence[:12],
        "two sentences": [file for file in files if file.stem.endswith("-05")][:24],
        "samples": sorted(Path("samples").glob("*.wav")),
    }
    for name, group in sets.items():
        clips = [decode_speech(file.read_bytes()) for file in group]
        once = np.concatenate(clips)
        waveform = np.tile(once, -(-174 * RATE // len(once)))[: 176 * RATE]
        started_s = time.perf_counter()
        segments = transcriber.transcribe(waveform)
        took_s = time.perf_counter() - started_s
        empty = sum(not segment.transcript for segment in segments)
        print(f"{name}: {len(waveform) / RATE:.0f} s in {took_s:.1f} s, {empty} of {len(segments)} without words")


def _transcriber() -> Transcriber:
    return Transcriber(MODEL_FOLDER / "speech_to_text" / "1" / "whisper")


def _normal(file: Path) -> Waveform:
    waveform = decode_speech(file.read_bytes())
    return waveform / np.abs(waveform).max() / 2


def _pause(duration_s: float) -> Waveform:
    return np.zeros(round(duration_s * RATE), np.float32)


def _words(text: str) -> list[str]:
    return re.sub("[^a-z0-9' ]", " ", text.lower().replace("11", "eleven")).split()


def _distance(said: list[str], recognised: list[str]) -> int:
    """Return the Levenshtein distance of two lists of words."""
    row = list(range(len(recognised) + 1))
    for i, one in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(recognised, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def main() -> None:
    """Run one of the checks on folders of data."""
    checks = {check.__name__: check for check in (voice, narrations, repetition)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=checks)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    checks[arguments.check](arguments.folders)


if __name__ == "__main__":
    main()
