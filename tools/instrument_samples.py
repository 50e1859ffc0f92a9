"""Render the composer's instruments from a General MIDI soundfont, once; the output is committed.

Needs the program fluidsynth and the soundfont of Debian's `musescore-general-soundfont-small` (MIT). Run:

    python -m tools.instrument_samples /usr/share/sounds/sf3/MuseScore_General_Lite.sf3 \
        ensemble/attune_ensemble/music/composer/samples
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from attune_ensemble.music.composer.loudness import LEVEL_HOP_S, level_curve_db
from attune_ensemble.music.composer.samples import SAMPLE_RATE

_SYNTH_RATE = 96_000
_TICKS_PER_S = 960
_SLOT_S = 10.0
_LEAD_S = 0.5
_PEAK = 0.7
_PERCUSSION_CHANNEL = 9

Audio = npt.NDArray[np.float32]  # [C, N]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one instrument is rendered: preset, pitches, and whether its notes are sustained or decay."""

    bank: int
    program: int
    pitches: tuple[int, ...]
    sustained: bool = False
    stereo: bool = False
    chorus: bool = False
    velocity: int = 80


@dataclass(frozen=True, slots=True)
class Stroke:
    """One drum stroke: the composer's note number, and its program and key in the soundfont."""

    pitch: int
    bank: int
    program: int
    key: int
    channel: int


RECIPES = {
    "piano": Recipe(0, 0, tuple(range(28, 100, 6)), stereo=True, velocity=72),
    "electric_piano": Recipe(0, 5, tuple(range(34, 95, 6)), chorus=True, stereo=True, velocity=72),
    "celesta": Recipe(0, 8, tuple(range(60, 109, 6))),
    "glockenspiel": Recipe(0, 9, tuple(range(72, 103, 6)), velocity=64),
    "vibraphone": Recipe(0, 11, tuple(range(52, 89, 6)), velocity=72),
    "marimba": Recipe(0, 12, tuple(range(42, 91, 6))),
    "harp": Recipe(0, 46, tuple(range(29, 96, 6))),
    "nylon_guitar": Recipe(0, 24, tuple(range(40, 83, 6))),
    "steel_guitar": Recipe(0, 25, tuple(range(40, 83, 6))),
    "violin": Recipe(8, 40, tuple(range(56, 93, 6)), sustained=True),
    "cello": Recipe(0, 42, tuple(range(37, 74, 6)), sustained=True),
    "contrabass": Recipe(0, 43, tuple(range(28, 53, 6)), sustained=True),
    "strings": Recipe(0, 49, tuple(range(38, 87, 6)), sustained=True, stereo=True),
    "flute": Recipe(0, 73, tuple(range(60, 91, 6)), sustained=True),
    "oboe": Recipe(0, 68, tuple(range(59, 90, 6)), sustained=True),
    "clarinet": Recipe(0, 71, tuple(range(51, 88, 6)), sustained=True),
    "french_horn": Recipe(0, 60, tuple(range(38, 75, 6)), sustained=True),
    "choir": Recipe(0, 52, tuple(range(44, 81, 6)), sustained=True, stereo=True),
    "warm_pad": Recipe(0, 89, tuple(range(38, 87, 6)), sustained=True, stereo=True, chorus=True),
}

STROKES = (
    Stroke(36, 0, 116, 70, 0),  # the deep stroke in the middle of the skin: a small taiko
    Stroke(38, 0, 0, 64, _PERCUSSION_CHANNEL),  # the open stroke near the rim: a low conga
    Stroke(42, 0, 0, 82, _PERCUSSION_CHANNEL),  # fingertips brushing the skin: a shaker
)


def build(soundfont: Path, folder: Path) -> None:
    """Write `<instrument>_<pitch>.ogg` for every recipe, and `index.json` with their K-weighted level curves."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, object]]] = {}
    for name, recipe in RECIPES.items():
        notes = _render(soundfont, recipe.bank, recipe.program, recipe.pitches, 0, recipe)
        index[name] = [
            _write_zone(folder, name, pitch, _cut(_in_tune(audio, pitch), recipe.sustained))
            for pitch, audio in zip(recipe.pitches, notes, strict=True)
        ]
    index["frame_drum"] = [_write_zone(folder, "frame_drum", s.pitch, _stroke(soundfont, s)) for s in STROKES]
    document = {"sample_rate": SAMPLE_RATE, "level_hop_s": LEVEL_HOP_S, "zones": index}
    (folder / "index.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


def _stroke(soundfont: Path, stroke: Stroke) -> Audio:
    recipe = Recipe(stroke.bank, stroke.program, (stroke.key,))
    return _cut(_render(soundfont, stroke.bank, stroke.program, (stroke.key,), stroke.channel, recipe)[0], False)


def _render(
    soundfont: Path, bank: int, program: int, keys: tuple[int, ...], channel: int, recipe: Recipe
) -> list[Audio]:
    """Render each key as [C, N] at the composer's sample rate, from its note-on."""
    with tempfile.TemporaryDirectory() as temporary:
        midi, wav = Path(temporary, "notes.mid"), Path(temporary, "notes.wav")
        midi.write_bytes(_midi_file(bank, program, keys, channel, recipe.velocity))
        options = ["-r", str(_SYNTH_RATE), "-R", "0", "-C", str(int(recipe.chorus)), "-g", "0.5", "-O", "float"]
        command = ["fluidsynth", "-ni", "-q", *options, "-T", "wav", "-o", "synth.midi-bank-select=gs"]
        subprocess.run([*command, "-F", str(wav), str(soundfont), str(midi)], check=True, capture_output=True)
        sound, _ = soundfile.read(wav, dtype="float32")
    if not recipe.stereo:
        sound = sound.mean(axis=1, keepdims=True)
    starts = [round((_LEAD_S + i * _SLOT_S) * _SYNTH_RATE) for i in range(len(keys))]
    slots = [sound[start : start + round(_SLOT_S * _SYNTH_RATE)] for start in starts]
    return [np.ascontiguousarray(soxr.resample(slot, _SYNTH_RATE, SAMPLE_RATE, "VHQ").T) for slot in slots]


def _midi_file(bank: int, program: int, keys: tuple[int, ...], channel: int, velocity: int) -> bytes:
    """Return a type 0 MIDI file that holds each key for 8.5 s of its ten-second slot."""
    track = b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")
    for message in ((0xB0, 0, bank), (0xC0, program), (0xB0, 7, 127)):
        track += b"\x00" + bytes([message[0] | channel, *message[1:]])
    now = 0
    for i, key in enumerate(keys):
        on = round((_LEAD_S + i * _SLOT_S) * _TICKS_PER_S)
        for tick, status, value in ((on, 0x90, velocity), (on + round(8.5 * _TICKS_PER_S), 0x80, 0)):
            track += _variable_length(tick - now) + bytes([status | channel, key, value])
            now = tick
    track += _variable_length(2 * _TICKS_PER_S) + b"\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_PER_S)
    return header + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(value: int) -> bytes:
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def _in_tune(audio: Audio, pitch: int) -> Audio:
    """Resample `audio` so that its fundamental or octave is in equal temperament at A = 440 Hz."""
    cents = detune_cents(audio.mean(axis=0), pitch)
    if abs(cents) < 2.0:
        return audio
    return np.ascontiguousarray(soxr.resample(audio.T, SAMPLE_RATE, SAMPLE_RATE * 2 ** (cents / 1200), "VHQ").T)


def detune_cents(mono: npt.NDArray[np.float32], pitch: int) -> float:
    """Return the deviations of the first two partials of `mono` from `pitch`, in cents, within a quarter tone."""
    segment = mono[round(0.1 * SAMPLE_RATE) : round(3.0 * SAMPLE_RATE)]
    num_points = 1 << 19
    spectrum = np.abs(np.fft.rfft(segment * np.hanning(len(segment)), num_points)) ** 2
    offsets, weights = [], []
    for partial in (1, 2):
        expected = partial * 440 * 2 ** ((pitch - 69) / 12) * num_points / SAMPLE_RATE
        low, high = round(expected * 2 ** (-50 / 1200)), round(expected * 2 ** (50 / 1200))
        band = spectrum[low : high + 1]
        centre = np.sum(band**2 * np.arange(low, high + 1)) / np.sum(band**2)
        offsets.append(1200 * np.log2(centre / expected))
        weights.append(band.max())
    return float(np.average(offsets, weights=weights))


def _cut(audio: Audio, sustained: bool) -> Audio:
    """Cut `audio` from just before its onset; sustained notes for 8 s, others until they have decayed."""
    level = np.abs(audio).max(axis=0)
    start = max(0, int(np.argmax(level > 0.02 * level.max())) - round(0.003 * SAMPLE_RATE))
    audio = audio[:, start : start + round(8.0 * SAMPLE_RATE)]
    if not sustained:
        curve = level_curve_db(audio, SAMPLE_RATE)
        audible_hops = int(np.nonzero(curve > curve.max() - 52)[0][-1]) + 1
        audio = audio[:, : round(max(audible_hops, 3) * LEVEL_HOP_S * SAMPLE_RATE)]
    audio = audio * np.float32(_PEAK / np.abs(audio).max())
    fade_in, fade_out = round(0.002 * SAMPLE_RATE), round((0.05 if sustained else 0.25) * SAMPLE_RATE)
    fade_out = min(fade_out, audio.shape[1] // 2)
    audio[:, :fade_in] *= np.linspace(0, 1, fade_in, dtype=np.float32)
    audio[:, -fade_out:] *= np.cos(np.linspace(0, np.pi / 2, fade_out, dtype=np.float32)) ** 2
    return audio


def _write_zone(folder: Path, name: str, pitch: int, audio: Audio) -> dict[str, object]:
    """Write the zone, and return its index entry, measured on the decoded file: levels in tenths of a decibel."""
    path = folder / f"{name}_{pitch}.ogg"
    soundfile.write(path, audio.T, SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=0.55)
    decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
    levels = np.rint(10 * level_curve_db(np.ascontiguousarray(decoded.T), SAMPLE_RATE)).astype(int)
    return {"pitch": pitch, "file": path.name, "levels": levels.tolist()}


def main() -> None:
    """Build the samples named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("soundfont", type=Path, help="an .sf2 or .sf3 file")
    parser.add_argument("folder", type=Path, help="where the samples go")
    arguments = parser.parse_args()
    build(arguments.soundfont, arguments.folder)


if __name__ == "__main__":
    main()
