"""The composer's scores: `pytest tests/unit/test_composer_score.py`."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from attune_client.protocol.music_spec import DYNAMICS, INSTRUMENTS, MODES, TONICS, MusicSpec
from attune_ensemble.music.composer.composition import Composer, compose
from attune_ensemble.music.composer.engine import ComposerEngine
from attune_ensemble.music.composer.harmony import INTERVALS, Chord, Key, progression, voicing
from attune_ensemble.music.composer.instruments import ROLE_LEVEL_DB, TABLE
from attune_ensemble.music.composer.orchestration import cast
from attune_ensemble.music.composer.score import Score
from attune_ensemble.music.plan import ConstantPlan
from tests.scales import pitch_classes

QUARTET = ("piano", "strings", "cello", "flute")


def score_of(spec: MusicSpec, seed: int = 1, duration_s: float = 40.0) -> Score:
    return Score.of(compose(ConstantPlan(spec, ""), seed, duration_s))


def random_specs(count: int) -> list[tuple[MusicSpec, float]]:
    rng = random.Random(7)
    specs = []
    for _ in range(count):
        players = tuple(rng.sample(INSTRUMENTS, rng.randint(1, len(INSTRUMENTS))))
        tempo = rng.uniform(40, 180)
        spec = MusicSpec(tempo, rng.choice(MODES), rng.choice(TONICS), players, rng.choice(DYNAMICS))
        specs.append((spec, rng.choice([1.0, 3.0, 12.0, 40.0, 150.0])))
    return specs


def test_tables_cover_the_vocabulary():
    assert set(TABLE) == set(INSTRUMENTS)
    assert set(INTERVALS) == set(MODES)
    assert set(ComposerEngine()._library.zones) == set(INSTRUMENTS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tonic", TONICS)
def test_a_key_has_the_notes_of_its_mode(tonic, mode):
    key = Key.named(tonic, mode)
    assert key.pitch_classes == pitch_classes(tonic, mode)
    assert {key.pitch(step) % 12 for step in range(7)} == pitch_classes(tonic, mode)


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_an_instrument_alone_plays_in_range_and_in_the_mode(instrument, mode):
    for tonic in TONICS:
        score = score_of(MusicSpec(72, mode, tonic, (instrument,), "mp"), duration_s=15)
        assert score.instruments == {instrument}
        assert score.pitch_classes <= pitch_classes(tonic, mode)
        assert all(TABLE[instrument].low <= note.pitch <= TABLE[instrument].high for note in score.notes)


def test_any_specification_gives_a_sound_score():
    for spec, duration_s in random_specs(150):
        score = score_of(spec, 3, duration_s)
        assert score.instruments == set(spec.instruments), spec
        assert score.pitch_classes <= pitch_classes(spec.tonic, spec.mode)
        for phrase in score.phrases:
            assert phrase.tempo_bpm == spec.tempo_bpm
            for note in phrase.notes:
                assert note.duration_beats > 0
                assert note.start_beat >= 0
                assert phrase.start_s + note.start_beat * phrase.seconds_per_beat < duration_s
                assert TABLE[note.instrument].low <= note.pitch <= TABLE[note.instrument].high
                assert 1 <= note.velocity <= 127
                assert note.role in ROLE_LEVEL_DB


@pytest.mark.parametrize("duration_s", [12.0, 30.0, 61.7, 600.0])
def test_phrases_follow_each_other_and_leave_room_for_the_last_chord(duration_s):
    score = score_of(MusicSpec(66, "dorian", "D", QUARTET, "p"), duration_s=duration_s)
    for phrase, following in pairwise(score.phrases):
        assert following.start_s == pytest.approx(phrase.end_s)
        assert len(phrase.degrees) == phrase.num_bars <= 6
    last = score.phrases[-1]
    assert last.label == "ending"
    assert 4.0 <= duration_s - last.start_s <= 8.2
    assert last.degrees == (0,)


def test_the_phrase_before_the_ending_leads_home():
    spec = MusicSpec(66, "ionian", "C", QUARTET, "p")
    for seed in range(20):
        assert score_of(spec, seed).phrases[-2].degrees[-1] in (3, 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_bars", range(1, 8))
def test_progressions_have_the_asked_length_and_cadence(mode, num_bars):
    rng = random.Random(num_bars)
    for _ in range(20):
        assert progression(mode, num_bars, "closed", rng)[-1] == 0
        for ending in ("open", "closed", "home"):
            degrees = progression(mode, num_bars, ending, rng)
            assert len(degrees) == num_bars
            for degree in degrees:  # no diminished triad
                root, _, fifth = (Key(0, mode).pitch(degree + tone) for tone in (0, 2, 4))
                assert fifth - root == 7


def test_voice_leading_has_little_motion_and_no_semitone_clashes():
    key = Key.named("D", "dorian")
    previous: tuple[int, ...] = ()
    for degree in (0, 3, 4, 0, 6, 2, 3, 0):
        pitches = voicing(Chord(degree), key, 53, 72, 3, previous)
        assert min(upper - lower for lower, upper in pairwise(pitches)) >= 3
        if previous:
            assert max(abs(new - old) for new, old in zip(pitches, previous, strict=True)) <= 5
        previous = pitches


def test_sustained_semitones_are_rare():
    """Less than one beat of a hundred holds a semitone or minor ninth for longer than a passing note."""
    rubbing = beats = 0.0
    for seed in range(4):
        for mode in MODES:
            for phrase in score_of(MusicSpec(66, mode, "D", (*QUARTET, "harp", "celesta"), "mp"), seed).phrases:
                beats += phrase.num_bars * phrase.beats_per_bar
                notes = [note for note in phrase.notes if note.is_pitched]
                for i, first in enumerate(notes):
                    for second in notes[i + 1 :]:
                        together = min(
                            first.start_beat + first.duration_beats, second.start_beat + second.duration_beats
                        ) - max(first.start_beat, second.start_beat)
                        if abs(first.pitch - second.pitch) in (1, 13) and together > 0.6:
                            rubbing += together
    assert rubbing / beats < 0.01


def test_melodies_move_mostly_by_step():
    steps = leaps = repeats = 0
    for seed in range(20):
        for phrase in score_of(MusicSpec(70, "aeolian", "A", QUARTET, "mp"), seed).phrases:
            melody = [note for note in phrase.notes if note.role == "melody"]
            for note, following in pairwise(melody):
                interval = abs(following.pitch - note.pitch)
                repeats += interval == 0
                steps += 0 < interval <= 4
                leaps += interval > 7
    total = steps + leaps + repeats
    assert steps > 0.55 * total
    assert leaps < 0.08 * total
    assert repeats < 0.3 * total


def test_a_theme_comes_back():
    """The rhythm of the first bar of the theme recurs later in the piece."""
    for seed in range(10):
        score = score_of(MusicSpec(70, "ionian", "C", QUARTET, "mp"), seed, 60.0)
        bars = []
        for phrase in score.phrases[:-1]:
            for bar in range(phrase.num_bars):
                start = bar * phrase.beats_per_bar
                onsets = tuple(
                    note.start_beat - start
                    for note in phrase.notes
                    if note.role == "melody" and start <= note.start_beat < start + phrase.beats_per_bar
                )
                bars.append(onsets)
        sung = [onsets for onsets in bars if onsets]
        assert sung.count(sung[0]) >= 3


def test_dynamics_are_in_the_velocities():
    def mean_velocity(dynamics: str) -> float:
        notes = score_of(MusicSpec(70, "ionian", "C", QUARTET, dynamics)).notes
        return sum(note.velocity for note in notes) / len(notes)

    levels = [mean_velocity(dynamics) for dynamics in DYNAMICS]
    assert all(louder - softer > 8 for softer, louder in pairwise(levels))


def test_registers_are_apart():
    score = score_of(MusicSpec(70, "ionian", "C", ("contrabass", "strings", "piano", "violin"), "mp"), duration_s=60)

    def mean_pitch(role: str) -> float:
        pitches = [note.pitch for note in score.notes if note.role == role]
        return sum(pitches) / len(pitches)

    assert mean_pitch("bass") + 12 < mean_pitch("pad") < mean_pitch("melody") - 5


def test_a_score_is_the_same_for_a_seed_and_another_for_another():
    spec = MusicSpec(70, "ionian", "C", QUARTET, "mp")
    assert score_of(spec, 5) == score_of(spec, 5)
    assert score_of(spec, 5).notes != score_of(spec, 6).notes


def test_phrases_are_composed_one_at_a_time():
    phrases = compose(ConstantPlan(MusicSpec(70, "ionian", "C", QUARTET, "mp"), ""), 1, 600.0)
    assert next(phrases).start_s == 0.0


def test_the_specification_may_change_from_phrase_to_phrase():
    composer = Composer(1)
    dark = composer.phrase(MusicSpec(60, "aeolian", "C", QUARTET, "p"), "theme", 0.0, 4, leads_home=False)
    bright = composer.phrase(MusicSpec(66, "ionian", "C", ("harp", "oboe"), "mp"), "answer", dark.end_s, 4, False)
    assert {note.pitch % 12 for note in bright.notes} <= pitch_classes("C", "ionian")
    assert {note.instrument for note in bright.notes} == {"harp", "oboe"}


@pytest.mark.parametrize(
    ("instruments", "role", "players"),
    [
        (("piano",), "leads", ("piano",)),
        (("piano",), "basses", ("piano",)),
        (("cello", "contrabass"), "leads", ("cello",)),
        (("flute", "cello"), "basses", ("cello",)),
        (("harp", "strings"), "pads", ("strings",)),
        (("frame_drum",), "leads", ()),
    ],
)
def test_roles(instruments, role, players):
    assert getattr(cast(instruments), role) == players
