"""Composition of the accompaniment: pads, arpeggios, bass, counter-melody, bells and drum."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from attune_ensemble.music.composer.harmony import Chord, Key, voicing
from attune_ensemble.music.composer.instruments import TABLE
from attune_ensemble.music.composer.score import BRUSH_STROKE, DEEP_STROKE, DRUM, OPEN_STROKE, Note

_PAD_WINDOWS = ((53, 72), (57, 77), (48, 67))
_PAD_VOICES = (3, 2, 2)
_MAX_HELD_S = 6.2


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of a part: their chords, and the constraints of tempo and dynamics."""

    key: Key
    chords: tuple[Chord, ...]
    beats_per_bar: int
    tempo_bpm: float
    velocity: int

    @property
    def num_beats(self) -> int:
        """Length of all bars."""
        return len(self.chords) * self.beats_per_bar

    @property
    def is_soft(self) -> bool:
        """Whether the dynamics are piano or softer."""
        return self.velocity < 58


def pad_part(bars: Bars, instrument: str, index: int, previous: tuple[int, ...]) -> tuple[list[Note], tuple[int, ...]]:
    """Compose chords over whole bars, common tones tied; also returns the last voicing, for the next phrase."""
    low, high = _window(instrument, *_PAD_WINDOWS[index % len(_PAD_WINDOWS)])
    voices = _PAD_VOICES[min(index, len(_PAD_VOICES) - 1)]
    voicings = []
    for chord in bars.chords:
        previous = voicing(chord, bars.key, low, high, voices, previous)
        voicings.append(previous)
    notes = [
        Note(start * bars.beats_per_bar, length * bars.beats_per_bar, pitch, bars.velocity, instrument, "pad")
        for pitch, start, length in _tied(voicings, _max_bars_tied(bars))
    ]
    return sorted(notes, key=lambda note: (note.start_beat, note.pitch)), previous


def _max_bars_tied(bars: Bars) -> int:
    return max(1, int(_MAX_HELD_S / (bars.beats_per_bar * 60 / bars.tempo_bpm)))


def _tied(voicings: list[tuple[int, ...]], max_bars: int) -> list[tuple[int, int, int]]:
    """Yield (pitch, first bar, number of bars) of each tone, tied while the next voicing contains it."""
    held: dict[int, int] = {}
    tones = []
    for bar, pitches in enumerate([*voicings, ()]):
        for pitch, start in list(held.items()):
            if pitch not in pitches or bar - start >= max_bars:
                tones.append((pitch, start, bar - start))
                del held[pitch]
        for pitch in pitches:
            held.setdefault(pitch, bar)
    return tones


_PATTERNS = {
    4: ((0, 1, 2, 3, 4, 3, 2, 1), (0, 2, 1, 2, 3, 2, 1, 2), (0, 2, 3, 4, 3, 2, 3, 2), (0, 1, 2, 4, 3, 2, 1, 2)),
    3: ((0, 1, 2, 3, 2, 1), (0, 2, 3, 4, 3, 2), (0, 2, 1, 3, 1, 2)),
}
_SPARSE_PATTERNS = {
    4: ((0, None, 2, None, 3, None, 2, None), (0, None, 1, 2, None, None, 3, None), (0, None, 2, 3, 4, None, 2, None)),
    3: ((0, None, 2, None, 3, None), (0, None, 2, 3, 2, None)),
}
_LATER_PATTERNS = {
    4: ((None, None, 1, None, None, None, 2, None), (None, None, None, 2, None, None, 1, None)),
    3: ((None, None, 2, None, 1, None), (None, None, None, None, 2, None)),
}


def arpeggio_part(bars: Bars, instrument: str, index: int, around: int, rng: random.Random) -> list[Note]:
    """Compose ascending broken chords around `around`; the second of two players (`index` 1) fills the gaps."""
    pool = _LATER_PATTERNS if index else (_SPARSE_PATTERNS if bars.is_soft or bars.tempo_bpm > 112 else _PATTERNS)
    pattern = rng.choice(pool[bars.beats_per_bar])
    low, high = _window(instrument, around + 5 * index, around + 21)
    notes = []
    for bar, chord in enumerate(bars.chords):
        tones = chord.pitches_between(bars.key, low, high)
        for slot, tone in enumerate(pattern):
            if tone is None:
                continue
            beat = slot / 2
            beats = _ringing(instrument, bars.beats_per_bar - beat)
            accent = 4 if slot == 0 else 0 if slot % 2 == 0 else -5
            start = bar * bars.beats_per_bar + beat
            notes.append(
                Note(start, beats, tones[tone % len(tones)], bars.velocity + accent - 4, instrument, "arpeggio")
            )
    return notes


def bass_part(bars: Bars, instrument: str, previous: int) -> tuple[list[Note], int]:
    """Compose roots, with fifths between them in a moving bass; also returns the last root, for the next phrase."""
    low, high = _window(instrument, 31, 50)
    walks = not bars.is_soft and bars.tempo_bpm < 132
    notes = []
    for bar, chord in enumerate(bars.chords):
        root, _, fifth = Chord(chord.degree).pitch_classes(bars.key)
        previous = _nearest_pitch(root, previous, low, high)
        start = bar * bars.beats_per_bar
        split = bars.beats_per_bar - (2 if bars.beats_per_bar == 4 else 1)
        first = split if walks else bars.beats_per_bar
        notes.append(Note(start, _ringing(instrument, first), previous, bars.velocity, instrument, "bass"))
        if walks:
            upper = _nearest_pitch(fifth, previous, low, high)
            beats = bars.beats_per_bar - split
            notes.append(Note(start + split, beats, upper, bars.velocity - 8, instrument, "bass"))
    return notes, previous


def counter_part(bars: Bars, instrument: str, index: int, melody: list[Note]) -> list[Note]:
    """Compose long notes below the melody: chord tones of least motion, other than the melody's pitch class."""
    facts = TABLE[instrument]
    low, high = max(facts.low, facts.melody_centre - 8), min(facts.high, facts.melody_centre + 5)
    pitch = facts.melody_centre - 2 - 5 * index
    notes: list[Note] = []
    for bar, chord in enumerate(bars.chords):
        start = float(bar * bars.beats_per_bar)
        sung = {note.pitch % 12 for note in melody if start <= note.start_beat < start + bars.beats_per_bar}
        tones = [p for p in chord.pitches_between(bars.key, low, high) if p % 12 not in sung]
        tones = tones or chord.pitches_between(bars.key, low, high)
        pitch = min(tones, key=lambda p: (abs(p - pitch) + (3 if p == pitch else 0), p))
        notes.append(Note(start, bars.beats_per_bar, pitch, bars.velocity - 2, instrument, "counter"))
    return [_joined(notes, i) for i in range(len(notes))]


def _joined(notes: list[Note], i: int) -> Note:
    """Shorten the note slightly before its own repetition, so that the repetition has an audible onset."""
    repeated = i + 1 < len(notes) and notes[i + 1].pitch == notes[i].pitch
    return replace(notes[i], duration_beats=notes[i].duration_beats - 0.25) if repeated else notes[i]


def bells_part(bars: Bars, instrument: str, rng: random.Random) -> list[Note]:
    """Compose sparse high chord tones, sometimes three ascending ones."""
    facts = TABLE[instrument]
    low = max(facts.low, 76)
    notes: list[tuple[float, int]] = []
    for bar, chord in enumerate(bars.chords):
        tones = Chord(chord.degree).pitches_between(bars.key, low, min(low + 18, facts.high))
        start = bar * bars.beats_per_bar
        first = rng.randrange(len(tones) - 2)
        if bar % 2 == 0:
            notes.append((start, tones[first + 1]))
        elif rng.random() < 0.6:
            notes += [(start + bars.beats_per_bar - 2 + 0.5 * i, tones[first + i]) for i in range(3)]
    return [Note(beat, _to_bar_end(beat, bars), pitch, bars.velocity - 6, instrument, "bells") for beat, pitch in notes]


def _to_bar_end(beat: float, bars: Bars) -> float:
    return bars.beats_per_bar - beat % bars.beats_per_bar


_SOFT_STROKES = {
    4: ((0.0, DEEP_STROKE, 0), (2.0, BRUSH_STROKE, -8)),
    3: ((0.0, DEEP_STROKE, 0), (2.0, BRUSH_STROKE, -8)),
}
_STROKES = {
    4: ((0.0, DEEP_STROKE, 0), (1.0, BRUSH_STROKE, -12), (2.0, OPEN_STROKE, -10), (3.0, BRUSH_STROKE, -10)),
    3: ((0.0, DEEP_STROKE, 0), (1.0, OPEN_STROKE, -12), (2.0, BRUSH_STROKE, -10)),
}
_LOUD_STROKES = {
    4: (*_STROKES[4], (1.5, DEEP_STROKE, -14), (3.5, BRUSH_STROKE, -14)),
    3: (*_STROKES[3], (2.5, BRUSH_STROKE, -14)),
}


def drum_part(bars: Bars) -> list[Note]:
    """Compose a steady frame drum, denser at louder dynamics; the last stroke of every fourth bar is omitted."""
    strokes = (
        _SOFT_STROKES if bars.is_soft else _STROKES if bars.velocity < 74 or bars.tempo_bpm > 120 else _LOUD_STROKES
    )
    notes = []
    for bar in range(len(bars.chords)):
        for beat, stroke, accent in sorted(strokes[bars.beats_per_bar]):
            if bar % 4 == 3 and beat > bars.beats_per_bar - 2:
                continue
            start = bar * bars.beats_per_bar + beat
            notes.append(Note(start, 0.5, stroke, bars.velocity + accent, DRUM, "drum"))
    return notes


def _ringing(instrument: str, beats: float) -> float:
    """Return the length in beats: unchanged for sustained notes, a quarter beat longer for struck and plucked ones."""
    return beats if TABLE[instrument].sustained else beats + 0.25


def _window(instrument: str, low: int, high: int) -> tuple[int, int]:
    """Clip `low`..`high` to the instrument's range, transposed by octaves first if less than one would be left."""
    facts = TABLE[instrument]
    if min(high, facts.high) - max(low, facts.low) >= 12:
        return max(low, facts.low), min(high, facts.high)
    while low < facts.low and high + 12 <= facts.high + 6:
        low, high = low + 12, high + 12
    while high > facts.high and low - 12 >= facts.low - 6:
        low, high = low - 12, high - 12
    return max(low, facts.low), min(high, facts.high)


def _nearest_pitch(pitch_class: int, near: int, low: int, high: int) -> int:
    """Return the pitch of that class between `low` and `high` (an octave or more) nearest to `near`."""
    return min((p for p in range(low, high + 1) if p % 12 == pitch_class), key=lambda p: (abs(p - near), p))
