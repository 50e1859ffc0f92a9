"""The composer follows a plan that changes, by measurement: `pytest tests/unit/test_composer_plans.py`."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import librosa
import numpy as np
import pyloudnorm
import pytest
import scipy.signal

from attune_client.protocol.music_spec import INSTRUMENTS, MusicSpec
from attune_ensemble.music.composer.composition import compose
from attune_ensemble.music.composer.engine import ComposerEngine
from attune_ensemble.music.composer.room import BLOCK, Room
from attune_ensemble.music.composer.samples import SAMPLE_RATE
from attune_ensemble.music.composer.score import Score
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.plan import ConstantPlan
from tests.plans import Turn
from tests.scales import pitch_classes
from tests.unit.test_composer_sound import num_clicks

CALM = MusicSpec(60.0, "ionian", "C", ("piano", "strings", "flute"), "p")
DARK = replace(CALM, tempo_bpm=100.0, mode="phrygian", tonic="F#")
DURATION_S, TURN_S = 48.0, 24.0


def turn(first, then, at_s=TURN_S):
    return Turn(ConstantPlan(first, ""), ConstantPlan(then, ""), at_s)


def score_of(plan, duration_s=DURATION_S, seed=1):
    return Score.of(compose(plan, seed, duration_s))


def play(plan, duration_s=DURATION_S, seed=1, chunk_s=1.0):
    return np.concatenate(list(ComposerEngine().generate(MusicRequest(plan, duration_s, seed), chunk_s)))


@lru_cache
def piece(first, then):
    return play(turn(first, then))


def before_and_after(sound):
    """The sound up to four seconds before the turn, and from the bar after it to before the last chord."""
    turn_at, margin = round(TURN_S * SAMPLE_RATE), 4 * SAMPLE_RATE
    return sound[: turn_at - margin // 4], sound[turn_at + margin : -6 * SAMPLE_RATE]


# The score


def test_a_phrase_ends_where_the_plan_changes():
    phrases = score_of(turn(CALM, DARK)).phrases
    first_after = next(phrase for phrase in phrases if phrase.tempo_bpm == 100.0)
    bar_s = first_after.beats_per_bar * 60 / CALM.tempo_bpm
    assert TURN_S <= first_after.start_s + 1e-6 < TURN_S + bar_s
    for phrase in phrases:
        spec = CALM if phrase is not first_after and phrase.start_s < first_after.start_s else DARK
        heard = {note.pitch % 12 for note in phrase.notes if note.is_pitched}
        assert phrase.tempo_bpm == spec.tempo_bpm
        assert heard <= pitch_classes(spec.tonic, spec.mode)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("first_bpm", "then_bpm"), [(40, 180), (180, 40), (66, 100)])
@pytest.mark.parametrize("at_s", [1.0, 17.3, 33.0, 39.0])
def test_phrases_fill_the_piece_whatever_becomes_of_the_tempo(first_bpm, then_bpm, at_s, seed):
    plan = turn(replace(CALM, tempo_bpm=first_bpm), replace(DARK, tempo_bpm=then_bpm), at_s)
    phrases = score_of(plan, 40.0, seed).phrases
    for phrase, following in pairwise(phrases):
        assert following.start_s == pytest.approx(phrase.end_s)
        assert following.tempo_bpm == plan.spec_at(following.start_s + 1e-6).tempo_bpm
    last = phrases[-1]
    bar_s = last.beats_per_bar * 60 / min(last.tempo_bpm, phrases[-2].tempo_bpm)
    assert last.label == "ending"
    assert 4.5 - 1e-6 <= 40.0 - last.start_s < 4.5 + bar_s + 1e-6
    assert all(note.duration_beats > 0 for phrase in phrases for note in phrase.notes)


def test_a_plan_that_changes_with_every_moment_is_followed_every_other_bar():
    class Ramp:
        def spec_at(self, time_s):
            return replace(CALM, tempo_bpm=60.0 + time_s)

        def prompt_at(self, time_s):
            return ""

    *body, _ending = score_of(Ramp(), 60.0).phrases
    assert {phrase.num_bars for phrase in body[:-1]} == {2}
    assert all(phrase.tempo_bpm == pytest.approx(60.0 + phrase.start_s, abs=1e-3) for phrase in body)


def test_players_leave_and_join_with_the_plan():
    quiet, full = replace(CALM, instruments=("harp",)), replace(CALM, instruments=INSTRUMENTS)
    phrases = score_of(turn(quiet, full)).phrases
    assert Score(tuple(p for p in phrases if p.start_s < TURN_S - 1e-6)).instruments == {"harp"}
    assert Score(tuple(p for p in phrases if p.start_s > TURN_S + 4)).instruments == set(INSTRUMENTS)


@pytest.mark.parametrize("seed", [1, 5])  # four beats a bar, and three
@pytest.mark.parametrize("tempo_bpm", [40, 60, 90, 180])
def test_a_plan_is_asked_no_sooner_than_its_music_is_needed(tempo_bpm, seed):
    """A phrase is asked for as it begins, up to the beginning of its fourth bar, and at most twelve seconds ahead."""
    plan = turn(replace(CALM, tempo_bpm=tempo_bpm), DARK, 300.0)
    request = MusicRequest(plan, 60.0, seed)
    chunks = ComposerEngine().generate(request, 1.0)
    assert plan.asked == []
    beats = ComposerEngine().score(request).phrases[0].beats_per_bar
    plan.asked.clear()
    for taken_s, _chunk in enumerate(chunks):
        made_s = taken_s + 1 + 2 * BLOCK / SAMPLE_RATE
        assert max(plan.asked) - made_s < min(12.0, 3 * beats * 60 / tempo_bpm)
    assert max(plan.asked) > 50.0


class Steered:
    """A plan that somebody changes while the music is made."""

    spec = replace(CALM, tempo_bpm=120.0)

    def spec_at(self, time_s):
        return self.spec

    def prompt_at(self, time_s):
        return ""


def test_a_plan_that_is_changed_meanwhile_is_heard_with_the_next_phrase():
    plan, stayed = Steered(), play(ConstantPlan(Steered.spec, ""), 40.0)
    chunks = []
    for chunk in ComposerEngine().generate(MusicRequest(plan, 40.0, 1), 1.0):
        chunks.append(chunk)
        if len(chunks) == 10:
            plan.spec = replace(DARK, instruments=("frame_drum",))
    differs = np.abs(np.concatenate(chunks) - stayed).max(axis=1) > 0
    changed_s = np.argmax(differs) / SAMPLE_RATE
    phrase_s = 4 * 4 * 60 / 120
    assert 10.0 <= changed_s < 10.0 + phrase_s + 0.5


# The sound


def test_the_tempo_follows():
    """librosa's default prior doubles slow tempi: give it the asked one, as for music of one tempo."""
    for sound, spec in zip(before_and_after(piece(CALM, DARK)), (CALM, DARK), strict=True):
        envelope = librosa.onset.onset_strength(y=sound.mean(axis=1), sr=SAMPLE_RATE)
        tempo = librosa.feature.tempo(onset_envelope=envelope, sr=SAMPLE_RATE, start_bpm=spec.tempo_bpm, std_bpm=0.4)[0]
        assert tempo == pytest.approx(spec.tempo_bpm, rel=0.04)


def test_more_onsets_are_heard_where_the_tempo_rises():
    slow, fast = (
        len(librosa.onset.onset_detect(y=sound.mean(axis=1), sr=SAMPLE_RATE)) / len(sound)
        for sound in before_and_after(piece(CALM, DARK))
    )
    assert fast > 1.25 * slow


def test_the_pitches_follow():
    for sound, spec in zip(before_and_after(piece(CALM, DARK)), (CALM, DARK), strict=True):
        chroma = librosa.feature.chroma_cqt(y=sound.mean(axis=1), sr=SAMPLE_RATE, norm=None).sum(axis=1)
        inside = pitch_classes(spec.tonic, spec.mode)
        assert set(np.argsort(chroma)[-4:]) <= inside
        assert chroma[sorted(inside)].sum() > 0.75 * chroma.sum()


SOFT, LOUD = replace(CALM, dynamics="pp"), replace(CALM, dynamics="f")


@pytest.mark.parametrize(("first", "then", "rise_db"), [(SOFT, LOUD, 6.0), (LOUD, SOFT, -6.0), (CALM, LOUD, 4.5)])
def test_the_loudness_follows(first, then, rise_db):
    """By 1.5 dB a level, held against pieces of one level, which all lie at -18 LUFS."""

    def loudness(first, then):
        meter = pyloudnorm.Meter(SAMPLE_RATE)
        return [meter.integrated_loudness(sound) for sound in before_and_after(piece(first, then))]

    before, after = loudness(first, then)
    assert before == pytest.approx(loudness(first, first)[0], abs=1.2)
    assert after == pytest.approx(loudness(then, then)[1] + rise_db, abs=1.0)
    assert abs(after - before) > 4.0


def test_a_loud_turn_stays_under_the_ceiling():
    oversampled = scipy.signal.resample_poly(piece(SOFT, LOUD), 4, 1, axis=0)
    assert 20 * np.log10(np.abs(oversampled).max()) < -1.0


@pytest.mark.parametrize(("first", "then"), [(CALM, DARK), (SOFT, LOUD), (LOUD, SOFT)])
def test_no_change_clicks(first, then):
    assert num_clicks(piece(first, then).mean(axis=1)) == 0


@pytest.mark.parametrize("chunk_s", [0.1, 0.777, 60.0])
def test_chunk_size_changes_nothing(chunk_s):
    plan = turn(SOFT, replace(DARK, dynamics="f"), 5.0)
    np.testing.assert_array_equal(play(plan, 12.0, chunk_s=chunk_s), play(plan, 12.0))


def test_a_plan_that_stays_plays_the_same_samples():
    np.testing.assert_array_equal(play(turn(SOFT, SOFT, 10.0), 20.0), play(ConstantPlan(SOFT, ""), 20.0))


def test_until_a_plan_changes_its_music_is_that_of_one_that_stays():
    """To the sample, up to the phrase that the change cuts short: nothing foresees it, the gain included."""
    plan = turn(CALM, DARK, 60.0)
    turned, stayed = play(plan, 75.0), play(ConstantPlan(CALM, ""), 75.0)
    phrases = score_of(plan, 75.0).phrases
    turns = next(i for i, phrase in enumerate(phrases) if phrase.tempo_bpm == DARK.tempo_bpm)
    before = round((phrases[turns - 1].start_s - 0.1) * SAMPLE_RATE) - 2 * BLOCK
    assert before > 40 * SAMPLE_RATE
    np.testing.assert_array_equal(turned[:before], stayed[:before])
    assert not np.array_equal(turned[-before // 8 :], stayed[-before // 8 :])


def test_samples_are_read_when_the_plan_first_asks_for_them():
    engine = ComposerEngine()
    plan = turn(replace(CALM, instruments=("piano",)), replace(CALM, instruments=("cello",)), 12.0)
    chunks = engine.generate(MusicRequest(plan, 24.0, 1), 1.0)

    def played():
        return {str(key[0]) for key in engine._library._notes_tuned._arrays}

    for _ in range(8):
        next(chunks)
    assert played() == {"piano"}
    for _ in chunks:
        pass
    assert played() == {"piano", "cello"}


# The room


def response(room, blocks=12):
    """What a room gives to one click on the send, [N]: its reverberation, then silence."""
    mix = np.zeros((3, BLOCK), np.float32)
    silence = mix.copy()
    mix[2, 0] = 1.0
    return np.concatenate([room.process(mix if block == 0 else silence)[0][0] for block in range(blocks)])


def tail_tilt_db(sound):
    """How much louder the tail of a reverberation is above 5 kHz than around 500 Hz."""
    tail = sound[round(0.3 * SAMPLE_RATE) : round(1.2 * SAMPLE_RATE)]
    power = np.abs(np.fft.rfft(tail)) ** 2
    hertz = np.fft.rfftfreq(len(tail), 1 / SAMPLE_RATE)
    high, low = power[(hertz > 5000) & (hertz < 9000)].mean(), power[(hertz > 300) & (hertz < 800)].mean()
    return 10 * np.log10(high / low)


def test_a_room_has_the_tail_of_the_dynamics_that_it_follows():
    room = Room("pp")
    soft = response(room)
    room.follow("f")
    room.process(np.zeros((3, BLOCK), np.float32))
    loud = response(room)
    np.testing.assert_array_equal(soft, response(Room("pp")))
    np.testing.assert_array_equal(loud, response(Room("f")))
    assert tail_tilt_db(loud) - tail_tilt_db(soft) == pytest.approx(4.0, abs=0.5)


def test_a_tail_that_rings_fades_from_one_tone_to_the_other():
    """A room that changes while a click rings gives one tone's tail before, the other's after, and no jump between."""
    soft, loud = response(Room("pp")), response(Room("f"))
    room = Room("pp")
    mix = np.zeros((3, BLOCK), np.float32)
    mix[2, 0] = 1.0
    blocks = [room.process(mix)[0][0]]
    room.follow("f")
    blocks += [room.process(np.zeros_like(mix))[0][0] for _ in range(3)]
    heard = np.concatenate(blocks)
    np.testing.assert_array_equal(heard[:BLOCK], soft[:BLOCK])
    np.testing.assert_array_equal(heard[2 * BLOCK :], loud[2 * BLOCK : 4 * BLOCK])
    fading = heard[BLOCK : 2 * BLOCK]
    between = np.sort([soft[BLOCK : 2 * BLOCK], loud[BLOCK : 2 * BLOCK]], axis=0)
    assert (fading >= between[0] - 1e-7).all()
    assert (fading <= between[1] + 1e-7).all()
    assert np.abs(fading[:8] - between[:, :8]).min(axis=0).max() < 1e-6


def test_the_room_turns_with_the_phrase(monkeypatch):
    """In the block in which the first phrase of the new dynamics begins."""
    followed, follow = [], Room.follow
    monkeypatch.setattr(Room, "follow", lambda self, dynamics: followed.append(dynamics) or follow(self, dynamics))
    plan = turn(SOFT, LOUD, 10.0)
    play(plan, 24.0)
    begins_s = next(phrase.start_s for phrase in score_of(plan, 24.0).phrases if phrase.dynamics == "f")
    assert set(followed) == {"pp", "f"}
    assert followed.index("f") == int(begins_s * SAMPLE_RATE) // BLOCK
    assert followed == sorted(followed, key=["pp", "f"].index)


def test_a_room_that_is_told_what_it_has_changes_nothing():
    one, other = Room("mp"), Room("mp")
    other.follow("mp")
    np.testing.assert_array_equal(response(one), response(other))
