"""Noise, speed, gain and synonyms: measured properties of what comes out.

.venv/bin/pytest tests/unit/test_training_augmentation.py
"""

from __future__ import annotations

import numpy as np
import pytest
from tools.wordnet_synonyms import Morphology, read_left_out, read_wordnet, table_lines

from attune_training.augmentation import (
    WaveformAugmentation,
    add_noise,
    change_gain,
    change_speed,
    replace_synonyms,
)
from attune_training.augmentation.channel import TELEPHONE_CODECS, equalise, reverberate, through_telephone
from attune_training.augmentation.words import load_synonyms, read_table
from attune_training.config import SAMPLE_RATE

OFF = {"noise_probability": 0.0, "speed_probability": 0.0, "gain_probability": 0.0}


@pytest.fixture
def random():
    return np.random.default_rng(7)


def tone(hertz=440.0, seconds=1.0, amplitude=0.5):
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def decibels(signal, noise):
    return 10 * np.log10(np.mean(np.square(signal, dtype=float)) / np.mean(np.square(noise, dtype=float)))


def pitch_hertz(waveform):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(waveform)


def slope_of(noise):
    """Return s where the noise's power falls as 1 / f^s, over whole octaves from 125 Hz to 8 kHz."""
    power = np.square(np.abs(np.fft.rfft(noise)))
    hertz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    low = 125 * 2 ** np.arange(6)
    levels = [np.mean(power[(hertz >= edge) & (hertz < 2 * edge)]) for edge in low]
    return -np.polyfit(np.log2(low), np.log2(levels), 1)[0]


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_has_the_asked_ratio(random, snr_db, slope):
    clean = tone()
    noisy = add_noise(clean, snr_db, random, slope)
    assert decibels(clean, noisy - clean) == pytest.approx(snr_db, abs=0.5)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_has_the_asked_colour(random, slope):
    clean = tone(seconds=4.0)
    assert slope_of(add_noise(clean, 0.0, random, slope) - clean) == pytest.approx(slope, abs=0.15)


def test_a_tone_played_faster_is_shorter_and_higher():
    """440 Hz at 1.1 becomes 484 Hz, and 2 s become 1.818 s."""
    faster = change_speed(tone(440.0, seconds=2.0), 1.1)
    assert len(faster) == pytest.approx(2 * SAMPLE_RATE / 1.1, abs=2)
    assert pitch_hertz(faster) == pytest.approx(484.0, abs=1.0)


def test_a_tone_played_slower_keeps_its_level():
    slower = change_speed(tone(440.0, seconds=2.0), 0.9)
    assert pitch_hertz(slower) == pytest.approx(396.0, abs=1.0)
    assert decibels(slower, tone()) == pytest.approx(0.0, abs=0.1)


def test_what_passes_half_the_sampling_rate_does_not_fold_back():
    """7.8 kHz at 1.1 would be 8.58 kHz, above what 16 kHz can hold: it must vanish, not turn into 7.42 kHz."""
    assert decibels(change_speed(tone(7800.0), 1.1), tone()) < -40


def test_a_speed_of_zero_is_refused():
    with pytest.raises(ValueError, match="above zero, not 0"):
        change_speed(tone(), 0.0)


def test_gain():
    """6.0206 dB is a factor of 2."""
    np.testing.assert_allclose(change_gain(tone(), 6.0206), 2 * tone(), rtol=1e-4)


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros(1), np.ones(1), np.zeros(400), np.ones(7)])
def test_silence_and_tiny_clips_break_nothing(random, waveform):
    waveform = waveform.astype(np.float32)
    always = WaveformAugmentation(noise_probability=1.0, speed_probability=1.0, gain_probability=1.0)
    for _ in range(5):
        changed = always.apply(waveform, random)
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()
        assert abs(len(changed) - len(waveform)) <= max(1, 0.12 * len(waveform))
        assert bool(changed.any()) == bool(waveform.any())


def test_every_change_keeps_float32_and_leaves_its_input_alone(random):
    clean = tone(seconds=0.2)
    before = clean.copy()
    for changed in (add_noise(clean, 5.0, random, 1.0), change_speed(clean, 1.05), change_gain(clean, -3.0)):
        assert changed.dtype == np.float32
    np.testing.assert_array_equal(clean, before)


def test_probabilities_of_zero_change_nothing(random):
    np.testing.assert_array_equal(WaveformAugmentation(**OFF).apply(tone(), random), tone())


def test_the_seed_decides():
    augmentation = WaveformAugmentation(gain_probability=0.5)
    first, again, other = (augmentation.apply(tone(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


def test_what_is_drawn_lies_in_the_ranges(random):
    augmentation = WaveformAugmentation(**OFF | {"noise_probability": 1.0}, snr_db=(12.0, 18.0))
    clean = tone(seconds=0.5)
    ratios = [decibels(clean, augmentation.apply(clean, random) - clean) for _ in range(50)]
    assert 11.5 < min(ratios) < 13.5
    assert 16.5 < max(ratios) < 18.5


@pytest.mark.parametrize(("amplitude", "highest"), [(0.9, 1.0), (1.5, 1.5)])
def test_loud_results_are_scaled_and_not_clipped(random, amplitude, highest):
    louder = WaveformAugmentation(**OFF | {"gain_probability": 1.0}, gain_db=(6.0, 6.0))
    clean = tone(amplitude=amplitude)
    changed = louder.apply(clean, random)
    assert np.abs(changed).max() == pytest.approx(highest, rel=1e-3)
    np.testing.assert_allclose(changed, clean * (highest / np.abs(clean).max()), atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise_probability": 1.5}, "noise_probability must be from 0 to 1, not 1.5"),
        ({"speed": (1.1, 0.9)}, "speed must be a range from low to high"),
        ({"speed": (0.0, 1.0)}, "speed must be above zero"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        WaveformAugmentation(**wrong)


TABLE = read_table(
    "# a comment\ncar\tnoun\tautomobile\ncars\tnoun\tautomobiles\nalmost\tadv\tnearly\nbuy\tverb\tpurchase\n"
    "usually\tadv\tnormally\n",
    "sports car\n",
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Buy the car, almost!", "Purchase the automobile, nearly!"),
        ("cars; CARS; Cars", "automobiles; CARS; Cars"),  # a capital inside a sentence is a name
        ("It is so. Almost.", "It is so. Nearly."),
        ("“Almost,” she said.", "“Nearly,” she said."),
        ("a car, the car", "a car, the automobile"),  # an automobile would need another article
        ("buy out, buy it", "buy out, purchase it"),  # a verb with a particle is another verb
        ("car's, car-like, non-car, car", "car's, car-like, non-car, automobile"),
        ("the sports car", "the sports car"),  # a phrase of its own
        ("He usually isn't never no one.", "He normally isn't never no one."),
        ("", ""),
        ("!? 12 ~", "!? 12 ~"),
    ],
)
def test_every_word_that_can_be_is_replaced_at_share_one(random, before, after):
    assert replace_synonyms(before, 1.0, random, TABLE) == after


def test_share_zero_changes_nothing_and_half_changes_half(random):
    text = "the car " * 1000
    assert replace_synonyms(text, 0.0, random, TABLE) == text
    assert replace_synonyms(text, 0.5, random, TABLE).count("automobile") == pytest.approx(500, abs=60)


def test_a_share_outside_zero_to_one_is_refused(random):
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        replace_synonyms("car", 2.0, random, TABLE)


def test_the_seed_decides_the_words():
    text = "The doctor certainly bought a huge car and the children were almost completely happy. " * 4
    first, again, other = (replace_synonyms(text, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_shipped_table_keeps_inflection_and_negation(random):
    table = load_synonyms()
    text = "The doctors had not bought cars and never had any."
    assert replace_synonyms(text, 1.0, random) == "The physicians had not purchased automobiles and never had any."
    assert not {"not", "no", "never", "nobody", "nothing", "without"} & set(table.substitutes)


def test_the_shipped_table_is_well_formed():
    table = load_synonyms()
    assert len(table.substitutes) > 900
    for form, substitutes in table.substitutes.items():
        assert form.isalpha()
        assert form.islower()
        assert substitutes
        assert form not in substitutes


MINIATURE = {
    "index.noun": "car n 1 0 1 1 00000001\nautomobile n 1 0 1 1 00000001\nbank n 2 0 2 2 00000002 00000003\n"
    "shore n 1 0 1 1 00000002\nmotor_car n 1 0 1 0 00000001\n",
    "data.noun": "00000001 06 n 03 car 0 automobile 0 motor_car 0 000 | a vehicle\n"
    "00000002 06 n 02 bank 0 shore 0 000 | beside water\n00000003 06 n 01 bank 1 000 | holds money\n",
    "index.verb": "buy v 1 0 1 1 00000004\npurchase v 1 0 1 1 00000004\nget v 1 0 1 1 00000004\n",
    "data.verb": "00000004 40 v 03 buy 0 purchase 0 get 0 000 02 + 08 00 + 11 03 | obtain for money\n",
    "index.adj": "",
    "data.adj": "",
    "index.adv": "",
    "data.adv": "",
    "cntlist.rev": "automobile%1:06:00:: 1 9\nbank%1:06:00:: 1 5\nbank%1:14:00:: 2 5\nbuy%2:40:00:: 1 8\n"
    "car%1:06:00:: 1 9\nget%2:40:00:: 1 8\npurchase%2:40:00:: 1 8\nshore%1:06:00:: 1 9\n",
}


def regular_lemmas(form):
    return [(stem, part) for part in ("noun", "verb") for stem in {form, form.removesuffix("s").removesuffix("ing")}]


def test_the_table_is_derived_from_dominant_senses(tmp_path):
    """Bank has two senses as frequent, get takes another frame than buy, a motor car is two words."""
    for name, text in MINIATURE.items():
        (tmp_path / name).write_text("  1 licence\n" + text if not name.startswith("cnt") else text)
    endings = {"NNS": "s", "VBZ": "s", "VBG": "ing"}
    morphology = Morphology(lambda lemma, tag: lemma + endings[tag] if tag in endings else None, regular_lemmas)
    left_out = read_left_out("# why\npurchase -> buy\ncars ->\n")
    assert table_lines(read_wordnet(tmp_path), morphology, left_out) == [
        "automobile\tnoun\tcar",
        "automobiles\tnoun\tcars",
        "buy\tverb\tpurchase",
        "buying\tverb\tpurchaseing",  # the miniature's endings are all regular
        "buys\tverb\tpurchases",
        "car\tnoun\tautomobile",
    ]


def test_struck_words():
    left_out = read_left_out("both\nfirst ->\n-> second\na -> b\n")
    struck = [("both", "x"), ("x", "both"), ("first", "x"), ("x", "second"), ("a", "b")]
    assert not any(left_out.allows(*pair) for pair in struck)
    assert all(left_out.allows(*pair) for pair in [("x", "first"), ("second", "x"), ("b", "a"), ("a", "x")])


def click_at_start(seconds=1.0):
    waveform = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    waveform[0] = 1.0
    return waveform


def test_a_room_decays_as_asked(random):
    """The tail's energy falls by 60 dB in the asked time: by 30 dB from its first tenth to its sixth."""
    heard = reverberate(click_at_start(), 0.5, 0.0, random)
    tail = heard[40:]
    tenths = [np.sum(np.square(tail[int(k * 800) : int((k + 1) * 800)])) for k in range(10)]
    assert 10 * np.log10(tenths[0] / tenths[5]) == pytest.approx(30.0, abs=2.0)


@pytest.mark.parametrize("direct_db", [0.0, 10.0])
def test_a_room_keeps_power_and_the_asked_share_of_direct_sound(random, direct_db):
    clean = click_at_start()
    heard = reverberate(clean, 0.3, direct_db, random)
    assert np.sum(np.square(heard)) == pytest.approx(1.0, rel=1e-3)
    assert 10 * np.log10(heard[0] ** 2 / np.sum(np.square(heard[1:]))) == pytest.approx(direct_db, abs=0.1)


def test_a_room_that_does_not_decay_is_refused(random):
    with pytest.raises(ValueError, match="above zero seconds"):
        reverberate(tone(), 0.0, 0.0, random)


@pytest.mark.parametrize(("hertz", "gain_db"), [(125.0, -6.0), (1000.0, 3.0), (4000.0, 8.0)])
def test_a_microphone_has_the_asked_gains(hertz, gain_db):
    bands = [60, 125, 250, 500, 1000, 2000, 4000, 8000]
    gains = [gain_db if band == hertz else 0.0 for band in bands]
    heard = equalise(tone(hertz), gains)
    assert 20 * np.log10(heard.std() / tone(hertz).std()) == pytest.approx(gain_db, abs=0.2)


def test_a_microphone_wants_a_gain_for_each_band():
    with pytest.raises(ValueError, match="expected 8 gains"):
        equalise(tone(), [0.0, 1.0])


@pytest.mark.parametrize("codec", TELEPHONE_CODECS)
def test_a_telephone_passes_its_band_alone(random, codec):
    voice, rumble, hiss = tone(1000.0), tone(80.0), tone(6000.0)
    heard = through_telephone(voice + rumble + hiss, codec)
    power = np.square(np.abs(np.fft.rfft(heard)))
    hertz = np.fft.rfftfreq(len(heard), 1 / SAMPLE_RATE)
    inside = power[(hertz > 900) & (hertz < 1100)].sum()
    assert len(heard) == len(voice)
    assert inside / power[hertz < 150].sum() > 100
    assert inside / power[hertz > 4200].sum() > 100
    assert heard.std() == pytest.approx((voice + rumble + hiss).std(), rel=0.01)


def test_a_room_a_microphone_and_a_telephone_are_drawn_where_they_are_asked_for(random):
    nothing = WaveformAugmentation(**OFF)
    for name in ("room_probability", "microphone_probability", "telephone_probability"):
        changed = WaveformAugmentation(**OFF, **{name: 1.0}).apply(tone(), random)
        assert changed.dtype == np.float32
        assert len(changed) == len(tone())
        assert not np.allclose(changed, nothing.apply(tone(), random), atol=1e-3)


@pytest.mark.parametrize("settings", [{"telephone_probability": 1.1}, {"room_decay_s": (0.0, 1.0)}])
def test_settings_of_the_channel_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        WaveformAugmentation(**settings)
