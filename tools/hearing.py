"""Evaluation of the transcriber on speech, other languages and non-speech: the table of hearing.md.

    python -m tools.hearing model_repository/speech_to_text/1/whisper \\
        'RAVDESS=DATA/ravdess/*.flac:12' 'CREMA-D=DATA/cremad/audio/*.ogg:31' \\
        'RAVDESS backwards=reversed:DATA/ravdess/*.flac:36' made

Every set is NAME=GLOB, with `:N` for every Nth file and `reversed:` for time-reversed speech, a voice without words;
`made` adds laughter and humming from a formant synthesiser, noise, and music of the composer.
"""

from __future__ import annotations

import argparse
import glob
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from scipy.signal import lfilter

from attune_client.protocol.errors import NoSpeech, SilentAudio, UnsupportedLanguage
from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.music.composer.engine import ComposerEngine
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.plan import ConstantPlan
from attune_ensemble.speech.audio import decode_speech
from attune_ensemble.speech.transcription import Transcriber

RATE = 16_000
VOWELS = {
    "a": ((750, 90), (1200, 110), (2500, 160)),
    "e": ((500, 80), (1800, 120), (2500, 160)),
    "o": ((450, 80), (850, 100), (2500, 160)),
    "i": ((300, 70), (2200, 120), (3000, 160)),
    "m": ((250, 60), (2000, 300)),
}  # frequency and bandwidth of the formants, in Hz
OUTCOMES = ("words", "voice alone", "no speech", "refused")

Waveform = npt.NDArray[np.float32]


def laughter(pitch_hz: float, bursts_per_s: float, vowel: str, seed: int = 0) -> Waveform:
    """Synthesise a laugh [T]: vowel bursts of falling pitch, each softer than the last, with breath between."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(5, 14))
    parts = [np.zeros(RATE // 3)]
    for number in range(count):
        length_s = rng.uniform(0.9, 1.1) / bursts_per_s
        time_s = np.arange(int(length_s * RATE)) / RATE
        falling = pitch_hz * (1 - 0.4 * number / count) * (1 + 0.15 * np.exp(-12 * time_s)) * rng.uniform(0.95, 1.05)
        voiced = np.clip((time_s - 0.35 * length_s) / 0.02, 0, 1) * np.clip((0.9 * length_s - time_s) / 0.05, 0, 1)
        breath = 0.05 * rng.normal(size=len(time_s)) * (1 - voiced) * np.clip(time_s / 0.02, 0, 1)
        parts.append((_pulses(falling) * voiced + breath) * (1 - 0.5 * number / count))
    return _voice(np.concatenate([*parts, np.zeros(RATE // 3)]), vowel)


def humming(pitch_hz: float, duration_s: float = 5.0) -> Waveform:
    """Synthesise a hum [T] that glides up and down by a tenth of its pitch."""
    time_s = np.arange(round(duration_s * RATE)) / RATE
    return _voice(_pulses(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time_s))), "m")


def _pulses(pitch_hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (np.diff(np.floor(np.cumsum(pitch_hz) / RATE), prepend=0) > 0).astype(float)


def _voice(source: npt.NDArray[np.float64], vowel: str) -> Waveform:
    for frequency, bandwidth in VOWELS[vowel]:
        radius = np.exp(-np.pi * bandwidth / RATE)
        source = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2], source)
    return (0.5 * source / np.abs(source).max()).astype(np.float32)


def noise(seed: int, duration_s: float = 6.0) -> Waveform:
    """Generate white noise [T] for even seeds, brown noise for odd ones."""
    white = np.random.default_rng(seed).normal(size=round(duration_s * RATE))
    made = white if seed % 2 == 0 else lfilter([1], [1, -0.995], white)
    return (0.4 * made / np.abs(made).max()).astype(np.float32)


def music(mode: str, seed: int, duration_s: float = 12.0) -> Waveform:
    """Render a piece [T] of the composer with choir and flute, the instruments most similar to a voice."""
    engine = ComposerEngine()
    spec = MusicSpec(60 + 20 * seed, mode, "D", ("choir", "flute", "strings"), "mf")
    piece = np.concatenate(list(engine.generate(MusicRequest(ConstantPlan(spec, ""), duration_s, seed), 1.0)))
    resampled: Waveform = soxr.resample(piece.mean(axis=1), engine.sample_rate, RATE)
    return resampled


def made_sets() -> Iterator[tuple[str, list[Waveform]]]:
    """Return the synthetic sets: names and waveforms."""
    pitches = (130, 220, 320, 420)
    yield "laughter, made", [laughter(hz, bursts, v) for hz in pitches for bursts in (4, 5.2) for v in "aeoi"]
    yield "humming, made", [humming(hz) for hz in pitches]
    yield "noise, made", [noise(seed) for seed in range(8)]
    yield "music of the composer", [music(mode, seed) for seed, mode in enumerate(("ionian", "aeolian", "phrygian"))]


def read_set(argument: str) -> tuple[str, Iterable[Waveform]]:
    """Read the name and the waveforms of the set NAME=[reversed:]GLOB[:N]."""
    name, _, pattern = argument.partition("=")
    backwards = pattern.startswith("reversed:")
    pattern, _, every = pattern.removeprefix("reversed:").partition(":")
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207  the pattern may be absolute
    files = [file for file in found if file.is_file()][:: int(every or 1)]
    step = -1 if backwards else 1
    return name, (decode_speech(file.read_bytes())[::step].copy() for file in files)


def outcome(transcriber: Transcriber, waveform: Waveform) -> str:
    """Return the outcome for one recording, as the name of a column."""
    try:
        transcription = transcriber.recognise(waveform)
    except (NoSpeech, SilentAudio):
        return "no speech"
    except UnsupportedLanguage:
        return "refused"
    return "words" if any(segment.transcript for segment in transcription.segments) else "voice alone"


def main() -> None:
    """Print one row for every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="folder of Whisper's weights")
    parser.add_argument("sets", nargs="+", help="NAME=GLOB, or made")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    transcriber = Transcriber(arguments.weights, threads=arguments.threads)
    print(f"| set | clips | {' | '.join(OUTCOMES)} | s of sound | s |\n|---|{'---:|' * (len(OUTCOMES) + 3)}")
    for argument in arguments.sets:
        for name, waveforms in made_sets() if argument == "made" else [read_set(argument)]:
            started_s, counts, sound_s = time.perf_counter(), Counter[str](), 0.0
            for waveform in waveforms:
                counts[outcome(transcriber, waveform)] += 1
                sound_s += len(waveform) / RATE
            row = " | ".join(str(counts[column]) for column in OUTCOMES)
            took_s = time.perf_counter() - started_s
            print(f"| {name} | {counts.total()} | {row} | {sound_s:.0f} | {took_s:.0f} |", flush=True)


if __name__ == "__main__":
    main()
