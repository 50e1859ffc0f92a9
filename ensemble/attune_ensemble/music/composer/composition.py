"""The composer: from a plan and a seed to phrases, written one at a time as they are asked for."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.music.composer.dynamics import VELOCITY
from attune_ensemble.music.composer.harmony import Chord, Key, coloured, progression
from attune_ensemble.music.composer.instruments import SHORT_RINGING, TABLE
from attune_ensemble.music.composer.melody import Compass, Singer, Theme, new_theme
from attune_ensemble.music.composer.orchestration import Cast, cast, melody_range, on_duty
from attune_ensemble.music.composer.parts import (
    Bars,
    arpeggio_part,
    bass_part,
    bells_part,
    counter_part,
    drum_part,
    pad_part,
)
from attune_ensemble.music.composer.score import DEEP_STROKE, DRUM, Note, Phrase
from attune_ensemble.music.plan import ConstantPlan, MusicPlan

LOOKAHEAD_S = 12.0
"""How far from the beginning of a phrase its plan is asked at most: two bars of the slowest tempo."""

_COLOUR_CHANCE = 0.35
_PHRASE_BARS = 4
_INTRO_FROM_BARS = 10
_CYCLE = ("theme", "answer", "contrast", "return", "theme", "answer", "bridge", "return")
_SHADE = {"intro": -6, "theme": 0, "answer": 2, "contrast": 4, "return": 1, "bridge": -4, "ending": -8}
_TURN_BARS = 2
_LAST_CHORD_S = 4.5
_LAST_STROKE_S = 1.5
_ECHO_BEATS = 2.0
_ECHO_STEP = 5
_ROUNDING_S = 1e-6
"""Sums of bars fall short of a change at a bar line by less than this."""


def compose(plan: MusicPlan, seed: int, duration_s: float) -> Composition:
    """Phrases of a piece of `duration_s` seconds, the last of them a final chord with room to fade."""
    return Composition(plan, seed, duration_s)


class Composition:
    """Iterates over the phrases of a piece, and asks its plan for the specification of each as it comes.

    A phrase that the plan would change on its way ends at that bar, two bars long at least. The plan is asked no
    further than `LOOKAHEAD_S` from the phrase's beginning, and than its fourth bar.
    """

    def __init__(self, plan: MusicPlan, seed: int, duration_s: float) -> None:
        self.start_s = 0.0
        """Where the next phrase begins."""
        self._plan = plan
        self._composer = Composer(seed)
        self._duration_s = duration_s
        self._body_s = duration_s - min(_LAST_CHORD_S, 0.35 * duration_s)
        self._spec: MusicSpec | None = None  # of the phrase before
        self._form: Form | None = None
        self._num_bars = 0  # that are left
        self._ended = False

    def __iter__(self) -> Composition:
        """Itself: it goes on where it stands."""
        return self

    def __next__(self) -> Phrase:
        """Compose the next phrase."""
        if self._ended:
            raise StopIteration
        spec = self._turned()
        if not self._num_bars or self._form is None:
            self._ended = True
            return self._composer.ending(spec, self.start_s, self._duration_s - self.start_s)
        label, bars = self._form.next(self._num_bars)
        bars = _bars_before_change(self._plan, spec, self.start_s, bars, self._composer.bar_s(spec))
        phrase = self._composer.phrase(spec, label, self.start_s, bars, leads_home=bars == self._num_bars)
        self._num_bars -= bars
        self.start_s = phrase.end_s
        return phrase

    def if_it_stays(self) -> Composition:
        """Return a copy that goes on as if the plan stayed what it was for the last phrase."""
        if self._spec is None:
            raise ValueError("no phrase has been composed yet")
        other = copy.copy(self)
        other._plan = ConstantPlan(self._spec, "")
        other._composer, other._form = copy.deepcopy((self._composer, self._form))
        return other

    def _turned(self) -> MusicSpec:
        """Ask for the specification of the next phrase, and count the bars that are left where the tempo changes."""
        before = self._spec
        if before is None:
            spec = self._plan.spec_at(0.0)
            self._num_bars = self._composer.bars_within(self._body_s, spec)
            self._form = Form(self._num_bars, cast(spec.instruments).accompanies)
        else:
            spec = self._plan.spec_at(self.start_s + _ROUNDING_S)
            if self._num_bars and spec.tempo_bpm != before.tempo_bpm:
                self._num_bars = self._composer.bars_within(self._body_s - self.start_s, spec)
        self._spec = spec
        return spec


def _bars_before_change(plan: MusicPlan, spec: MusicSpec, start_s: float, num_bars: int, bar_s: float) -> int:
    """Return how many of `num_bars` from `start_s` precede the plan's next change, as far as it may be asked."""
    within_reach = range(_TURN_BARS, min(num_bars, _PHRASE_BARS, int(LOOKAHEAD_S / bar_s) + 1))
    return next(
        (bar for bar in within_reach if plan.spec_at(start_s + bar * bar_s + _ROUNDING_S) != spec),
        num_bars,
    )


class Form:
    """The order of phrases: an introduction where there is time and accompaniment for one, then the themes in turn."""

    def __init__(self, num_bars: int, with_intro: bool) -> None:
        self._intro_follows = num_bars >= _INTRO_FROM_BARS and with_intro
        self._index = 0

    def next(self, num_bars: int) -> tuple[str, int]:
        """Label and length of the next phrase of `num_bars` that are left; the last one takes up to six bars."""
        if self._intro_follows:
            self._intro_follows = False
            return "intro", 2
        bars = _PHRASE_BARS if num_bars >= 2 * _PHRASE_BARS - 1 else num_bars
        closes = bars == num_bars and self._index > 0
        label = "return" if closes else _CYCLE[self._index % len(_CYCLE)]
        self._index += 1
        return label, bars


class Composer:
    """Composes consecutive phrases; its state is the themes and the last note of each voice.

    The specification is an argument of each phrase, so that it may change from one to the next.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"attune composer {seed}")
        self.beats_per_bar = 3 if self._rng.random() < 0.3 else 4
        self._singer = Singer()
        self._themes: dict[str, Theme] = {}
        self._num_bars = 0
        self._voicings: dict[str, tuple[int, ...]] = {}
        self._bass_pitch = 40

    def bar_s(self, spec: MusicSpec) -> float:
        """Length of a bar in seconds."""
        return self.beats_per_bar * 60 / spec.tempo_bpm

    def bars_within(self, seconds: float, spec: MusicSpec) -> int:
        """Return the number of whole bars in `seconds`."""
        return max(0, int(seconds / self.bar_s(spec)))

    def phrase(self, spec: MusicSpec, label: str, start_s: float, num_bars: int, leads_home: bool) -> Phrase:
        """Compose the next phrase of `num_bars`; `leads_home` ends it on a cadence that resolves in the ending."""
        key = Key.named(spec.tonic, spec.mode)
        ending = "home" if leads_home else "closed" if label in ("answer", "return") else "open"
        degrees = progression(spec.mode, num_bars, ending, self._rng)
        chords = tuple(coloured(degree, key, self._rng, _COLOUR_CHANCE) for degree in degrees)
        velocity = VELOCITY[spec.dynamics] + _SHADE[label]
        bars = Bars(key, chords, self.beats_per_bar, spec.tempo_bpm, velocity)
        notes = self._parts(bars, spec, label, ending)
        self._num_bars += num_bars
        return Phrase(
            label, start_s, spec.tempo_bpm, spec.dynamics, self.beats_per_bar, num_bars, degrees, _shaped(notes, bars)
        )

    def ending(self, spec: MusicSpec, start_s: float, length_s: float) -> Phrase:
        """Compose the final tonic chord, `length_s` long, softly, with all instruments."""
        key = Key.named(spec.tonic, spec.mode)
        beats = length_s * spec.tempo_bpm / 60
        velocity = VELOCITY[spec.dynamics] + _SHADE["ending"]
        bars = Bars(key, (Chord(0),), self.beats_per_bar, spec.tempo_bpm, velocity)
        notes = self._final_chord(bars, cast(spec.instruments), beats)
        if SHORT_RINGING.issuperset(spec.instruments):
            notes += _echoes(notes, beats - _LAST_STROKE_S * spec.tempo_bpm / 60)
        played = tuple(sorted(notes, key=_order))
        return Phrase("ending", start_s, spec.tempo_bpm, spec.dynamics, self.beats_per_bar, 1, (0,), played)

    def _parts(self, bars: Bars, spec: MusicSpec, label: str, ending: str) -> list[Note]:
        """Compose all parts of a phrase; instruments that share a role alternate every two bars."""
        players = cast(spec.instruments)
        sings = label != "intro" and bool(players.leads)
        melody = self._melody(bars, players, spec, label, ending) if sings else []
        notes = list(melody)
        for first in range(0, len(bars.chords), _TURN_BARS):
            turn_bars = replace(bars, chords=bars.chords[first : first + _TURN_BARS])
            offset = first * bars.beats_per_bar
            heard = [replace(n, start_beat=n.start_beat - offset) for n in melody if n.start_beat >= offset]
            turn = (self._num_bars + first) // _TURN_BARS
            written = self._turn(turn_bars, players, label, turn, heard)
            notes += [replace(note, start_beat=note.start_beat + offset) for note in written]
        for index, name in enumerate(players.pads):
            part, self._voicings[name] = pad_part(bars, name, index, self._voicings.get(name, ()))
            notes += part
        for name in players.basses:
            part, self._bass_pitch = bass_part(bars, name, self._bass_pitch)
            notes += part
        return notes

    def _melody(self, bars: Bars, players: Cast, spec: MusicSpec, label: str, ending: str) -> list[Note]:
        """Compose the melody of this phrase, played by the lead instruments in turn."""
        theme = self._theme(label, spec)
        ranges = [melody_range(name) for name in players.leads]
        low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
        compass = Compass(bars.key, low, high)
        line = self._singer.sing(theme, bars.chords, bars.beats_per_bar, compass, home=ending == "closed")
        return [
            Note(
                sung.beat,
                sung.beats,
                sung.pitch,
                bars.velocity + (5 if sung.strong else 1),
                on_duty(players.leads, (self._num_bars + int(sung.beat) // bars.beats_per_bar) // _TURN_BARS, 1)[0],
                "melody",
            )
            for sung in line
        ]

    def _theme(self, label: str, spec: MusicSpec) -> Theme:
        """Return the main or contrasting theme; answers and returns are varied, each cycle has a new contrast."""
        kind = "second" if label in ("contrast", "bridge") else "main"
        if kind not in self._themes or label == "contrast":
            self._themes[kind] = new_theme(self.beats_per_bar, _liveliness(spec), self._rng)
        theme = self._themes[kind]
        return theme.varied(self._rng) if label in ("answer", "return") else theme

    def _turn(self, bars: Bars, players: Cast, label: str, turn: int, melody: list[Note]) -> list[Note]:
        """Compose two bars of the parts in which instruments alternate."""
        around = 52 if not players.leads or TABLE[players.leads[0]].melody_centre >= 64 else 60
        notes: list[Note] = []
        for index, name in enumerate(on_duty(players.arpeggios, turn, 2)):
            notes += arpeggio_part(bars, name, index, around, self._rng)
        for index, name in enumerate(on_duty(players.counters, turn, 2)):
            if label != "intro" or not players.accompanies:
                notes += counter_part(bars, name, index, melody)
        for name in on_duty(players.bells, turn, 1):
            notes += bells_part(bars, name, self._rng)
        if players.drums and label not in ("intro", "bridge"):
            notes += drum_part(bars)
        return notes

    def _final_chord(self, bars: Bars, players: Cast, beats: float) -> list[Note]:
        """Compose the final chord: bass and pads, plucked strings arpeggiated, melody on the tonic, a bell last."""
        velocity, key = bars.velocity, bars.key
        held = max(0.5, beats - 0.5)
        notes = [Note(0.0, held, DEEP_STROKE, velocity - 6, DRUM, "drum") for _ in players.drums]
        for name in players.basses:
            part, self._bass_pitch = bass_part(bars, name, self._bass_pitch)
            notes.append(replace(part[0], duration_beats=held))
        for index, name in enumerate(players.pads):
            part, _ = pad_part(bars, name, index, self._voicings.get(name, ()))
            notes += [replace(note, duration_beats=held) for note in part]
        roll = min(0.5, beats / 12)
        for index, name in enumerate(players.arpeggios):
            tones = bars.chords[0].pitches_between(key, max(TABLE[name].low, 52), min(TABLE[name].high, 77))
            step = 1 if len(players.arpeggios) == 1 else 2
            rolled = tones[index % 2 :: step][:5]
            notes += [
                Note(i * roll * step, held - i * roll * step, pitch, velocity - i, name, "arpeggio")
                for i, pitch in enumerate(rolled)
            ]
        singers = (*players.leads, *players.counters)
        for index, name in enumerate(singers):
            role = "melody" if name in players.leads else "counter"
            notes.append(Note(0.0, held, self._final_pitch(name, index, key), velocity, name, role))
        for index, name in enumerate(players.bells):
            high = bars.chords[0].pitches_between(key, max(TABLE[name].low, 78), min(TABLE[name].high, 96))
            beat = min(1.0 + 0.5 * index, beats / 4)
            notes.append(Note(beat, held - beat, high[index % len(high)], velocity - 6, name, "bells"))
        return notes

    def _final_pitch(self, name: str, index: int, key: Key) -> int:
        """Return the tonic for the first lead, near its last note; fifth, third, tonic, ... for the others."""
        pitch_class = key.pitch((0, 4, 2)[index % 3]) % 12
        low, high = melody_range(name)
        near = self._singer.last_pitch if index == 0 and self._singer.last_pitch else TABLE[name].melody_centre
        return min((p for p in range(low, high + 1) if p % 12 == pitch_class), key=lambda p: (abs(p - near), p))


def _echoes(notes: list[Note], until_beat: float) -> list[Note]:
    """Repeat the notes every two beats, softer each time, for instruments that cannot sustain a chord."""
    times = range(1, max(1, math.ceil(until_beat / _ECHO_BEATS)))
    return [
        replace(note, start_beat=note.start_beat + _ECHO_BEATS * i, velocity=max(note.velocity - _ECHO_STEP * i, 20))
        for i in times
        for note in notes
        if note.start_beat + _ECHO_BEATS * i < until_beat
    ]


def _liveliness(spec: MusicSpec) -> float:
    """Return the rhythmic density of a melody, 0..1: higher for longer beats and louder dynamics."""
    slow = min(max((120 - spec.tempo_bpm) / 70, 0.0), 1.0)
    return 0.2 + 0.45 * slow + 0.07 * list(VELOCITY).index(spec.dynamics)


def _shaped(notes: list[Note], bars: Bars) -> tuple[Note, ...]:
    """Sort the notes, and shape their velocities: rising to the middle of the phrase and falling to its end."""

    def swelled(note: Note) -> Note:
        arc = math.sin(math.pi * min(note.start_beat / bars.num_beats, 1.0))
        return replace(note, velocity=min(max(round(note.velocity - 3 + 7 * arc), 20), 110))

    return tuple(sorted((swelled(note) for note in notes), key=_order))


def _order(note: Note) -> tuple[float, str, int]:
    return note.start_beat, note.instrument, note.pitch
