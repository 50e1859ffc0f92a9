"""The committed samples, and the tool that rendered them: `pytest tests/unit/test_composer_samples.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tools.instrument_samples import RECIPES, STROKES, detune_cents

from attune_ensemble.music import composer
from attune_ensemble.music.composer.instruments import TABLE
from attune_ensemble.music.composer.samples import SAMPLE_RATE, SampleLibrary

FOLDER = Path(composer.__file__).parent / "samples"


def test_every_file_is_indexed_and_every_index_entry_is_a_file():
    indexed = {zone.file for zones in SampleLibrary().zones.values() for zone in zones}
    assert indexed == {path.name for path in FOLDER.glob("*.ogg")}


def test_samples_are_as_the_recipes_say():
    zones = SampleLibrary().zones
    for name, recipe in RECIPES.items():
        assert tuple(zone.pitch for zone in zones[name]) == recipe.pitches
    assert tuple(zone.pitch for zone in zones["frame_drum"]) == tuple(stroke.pitch for stroke in STROKES)


def test_no_pitch_in_range_is_far_from_a_sample():
    library = SampleLibrary()
    for name, facts in TABLE.items():
        for pitch in range(facts.low, facts.high + 1):
            if name != "frame_drum":
                assert abs(library.zone(name, pitch).pitch - pitch) <= 4, (name, pitch)


def test_the_samples_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.ogg")) < 10 * 2**20


def test_the_notice_carries_licence_and_credits():
    notice = (FOLDER / "NOTICE.txt").read_text()
    for words in ("Permission is hereby granted", "Frank Wen", "Michael Cowgill", "S. Christian Collins"):
        assert words in notice


@pytest.mark.parametrize(("instrument", "channels"), [("piano", 2), ("violin", 1), ("warm_pad", 2), ("frame_drum", 1)])
def test_a_file_has_the_stated_format(instrument, channels):
    info = soundfile.info(FOLDER / SampleLibrary().zones[instrument][0].file)
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, channels, "VORBIS")


def test_raising_and_darkening_a_note():
    library = SampleLibrary()
    as_recorded, raised = (library.note("flute", pitch, 0, 2.0)[0] for pitch in (66, 68))
    assert 2.0 * SAMPLE_RATE <= len(raised) < 2.2 * SAMPLE_RATE
    assert abs(20 * np.log10(np.std(raised) / np.std(as_recorded))) < 1.5
    dark = library.note("flute", 66, -12, 2.0)[0]

    def power_above_3_khz(sound: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(sound)) ** 2
        return float(spectrum[np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE) > 3000].sum())

    assert power_above_3_khz(dark) < 0.2 * power_above_3_khz(as_recorded)


@pytest.mark.parametrize("cents", [-12.0, 0.0, 8.5])
def test_detuning_is_measured(cents):
    time_s = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    fundamental_hz = 440 * 2 ** (cents / 1200)
    tone = sum(np.sin(2 * np.pi * partial * fundamental_hz * time_s) / partial for partial in (1, 2, 3))
    assert detune_cents(tone.astype(np.float32), 69) == pytest.approx(cents, abs=0.5)
