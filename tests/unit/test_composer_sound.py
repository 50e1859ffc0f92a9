"""What the composer sounds like, by measurement: `pytest tests/unit/test_composer_sound.py`.

A click is a jump from one sample to the next, in the part of the sound above 8 kHz, that alone holds a quarter of the
energy of all jumps in the 40 ms around it: real strokes bring broadband energy that lasts.
"""

from __future__ import annotations

from functools import lru_cache

import librosa
import numpy as np
import numpy.typing as npt
import pyloudnorm
import pytest
import scipy.signal

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.music_spec import INSTRUMENTS, MusicSpec
from attune_ensemble.music.composer.composition import compose
from attune_ensemble.music.composer.engine import ComposerEngine
from attune_ensemble.music.composer.loudness import integrated_loudness, level_curve_db
from attune_ensemble.music.composer.mastering import CEILING_DB, Limiter
from attune_ensemble.music.composer.performance import Stroke, perform
from attune_ensemble.music.composer.renderer import Renderer
from attune_ensemble.music.composer.room import BLOCK, Room
from attune_ensemble.music.composer.samples import SAMPLE_RATE, SampleLibrary
from attune_ensemble.music.engine import MusicRequest
from attune_ensemble.music.plan import ConstantPlan
from tests.scales import pitch_classes

ENGINE = ComposerEngine()

SPECS = {
    "calm": MusicSpec(60, "ionian", "C", ("piano", "strings", "cello", "flute"), "p"),
    "folk": MusicSpec(84, "dorian", "D", ("steel_guitar", "violin", "frame_drum", "contrabass"), "mp"),
    "slow": MusicSpec(40, "phrygian", "E", ("strings", "choir", "harp"), "pp"),
    "fast": MusicSpec(180, "lydian", "Bb", ("marimba", "clarinet", "contrabass", "celesta"), "f"),
    "tutti": MusicSpec(72, "mixolydian", "G", INSTRUMENTS, "mf"),
    "solo": MusicSpec(66, "aeolian", "E", ("piano",), "mp"),
}
DURATION_S = 20.0


def request_for(spec: MusicSpec, duration_s: float = DURATION_S, seed: int = 1) -> MusicRequest:
    return MusicRequest(ConstantPlan(spec, ""), duration_s, seed)


def play(request: MusicRequest, chunk_s: float = 1.0) -> npt.NDArray[np.float32]:
    return np.concatenate(list(ENGINE.generate(request, chunk_s)))


@lru_cache
def piece(name: str) -> npt.NDArray[np.float32]:
    return play(request_for(SPECS[name]))


every_spec = pytest.mark.parametrize("name", SPECS)


@every_spec
def test_length_format_and_range(name):
    sound = piece(name)
    assert sound.shape == (round(DURATION_S * SAMPLE_RATE), 2)
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()


@every_spec
def test_loudness(name):
    assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(piece(name)) == pytest.approx(-18.0, abs=1.0)


@every_spec
def test_true_peak(name):
    oversampled = scipy.signal.resample_poly(piece(name), 4, 1, axis=0)
    assert 20 * np.log10(np.abs(oversampled).max()) < -1.0


@every_spec
def test_tempo(name):
    """librosa's default prior doubles slow tempi: give it the asked one, narrowly."""
    envelope = librosa.onset.onset_strength(y=piece(name).mean(axis=1), sr=SAMPLE_RATE)
    asked = SPECS[name].tempo_bpm
    tempo = librosa.feature.tempo(onset_envelope=envelope, sr=SAMPLE_RATE, start_bpm=asked, std_bpm=0.4)[0]
    assert tempo == pytest.approx(asked, rel=0.04)


@every_spec
def test_pitches_belong_to_the_mode(name):
    """The pitch classes heard most are of the mode, and hold most of the tonal energy."""
    spec = SPECS[name]
    chroma = librosa.feature.chroma_cqt(y=piece(name).mean(axis=1), sr=SAMPLE_RATE, norm=None).sum(axis=1)
    inside = pitch_classes(spec.tonic, spec.mode)
    assert set(np.argsort(chroma)[-4:]) <= inside
    assert chroma[sorted(inside)].sum() > 0.75 * chroma.sum()


@every_spec
def test_no_clicks(name):
    sound = piece(name).mean(axis=1)
    assert num_clicks(sound) == 0


def test_a_click_would_be_found():
    sound = piece("calm").mean(axis=1).copy()
    sound[200_000:] *= 0.9
    sound[333_333] += 0.05
    assert num_clicks(sound) >= 1


def num_clicks(sound: npt.NDArray[np.float32]) -> int:
    high = scipy.signal.sosfilt(scipy.signal.butter(4, 8000, "high", fs=SAMPLE_RATE, output="sos"), sound)
    jumps = np.abs(np.diff(high))
    window = round(0.04 * SAMPLE_RATE)
    around = np.maximum(scipy.ndimage.uniform_filter1d(jumps**2, window), 0)
    return int(np.sum((jumps > 3e-3) & (jumps**2 > 0.25 * window * around)))


@every_spec
def test_the_end_fades_but_is_not_silent(name):
    sound = piece(name)

    def level_db(start_s: float, end_s: float) -> float:
        part = sound[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
        return float(20 * np.log10(np.sqrt(np.mean(part**2)) + 1e-12))

    body = level_db(2.0, DURATION_S - 5)
    assert level_db(DURATION_S - 3, DURATION_S - 1.5) > body - 30
    assert level_db(DURATION_S - 0.5, DURATION_S) < body - 18
    assert np.abs(sound[-20:]).max() < 1e-4


@every_spec
def test_nothing_below_the_high_pass(name):
    spectrum = np.abs(np.fft.rfft(piece(name).mean(axis=1))) ** 2
    assert spectrum[: round(15 * DURATION_S)].sum() < 1e-4 * spectrum.sum()


@pytest.mark.parametrize("instruments", [("frame_drum",), ("marimba",), ("celesta", "frame_drum")])
@pytest.mark.parametrize("tempo_bpm", [44, 90])
def test_instruments_that_ring_briefly_do_not_leave_silence_at_the_end(instruments, tempo_bpm):
    sound = play(request_for(MusicSpec(tempo_bpm, "ionian", "C", instruments, "mp"), 12.0))
    last = sound[-round(3.5 * SAMPLE_RATE) : -SAMPLE_RATE]
    assert 20 * np.log10(np.std(last) / np.std(sound)) > -30


def test_it_is_stereo_and_balanced():
    left, right = piece("calm").T
    assert abs(20 * np.log10(np.std(left) / np.std(right))) < 3
    assert np.corrcoef(left, right)[0, 1] < 0.98


@pytest.mark.parametrize("chunk_s", [0.1, 0.777, 4.0, 60.0])
def test_chunk_size_changes_nothing(chunk_s):
    request = request_for(SPECS["folk"], duration_s=6.3)
    chunks = list(ENGINE.generate(request, chunk_s))
    sizes = {len(chunk) for chunk in chunks[:-1]}
    assert sizes <= {round(chunk_s * SAMPLE_RATE)}
    assert 0 < len(chunks[-1]) <= round(chunk_s * SAMPLE_RATE)
    np.testing.assert_array_equal(np.concatenate(chunks), play(request))


def test_a_seed_gives_the_same_sound_in_any_engine():
    request = request_for(SPECS["calm"], duration_s=4.0, seed=9)
    again = np.concatenate(list(ComposerEngine().generate(request, 1.0)))
    np.testing.assert_array_equal(play(request), again)
    assert not np.array_equal(again, play(request_for(SPECS["calm"], duration_s=4.0, seed=10)))


@pytest.mark.parametrize("duration_s", [1.0, 1.37, 2.5, 7.123])
def test_short_pieces(duration_s):
    sound = play(request_for(SPECS["tutti"], duration_s))
    assert len(sound) == round(duration_s * SAMPLE_RATE)
    assert np.abs(sound).max() > 0.05


@pytest.mark.parametrize("duration_s", [0.9, 600.1, float("nan"), float("inf"), -3.0])
def test_durations_out_of_range_are_refused(duration_s):
    with pytest.raises(InvalidOption, match="between 1 and 600"):
        ENGINE.generate(request_for(SPECS["calm"], duration_s), 1.0)


@pytest.mark.parametrize("chunk_s", [0.0, -1.0, float("nan")])
def test_chunks_of_no_length_are_refused(chunk_s):
    with pytest.raises(InvalidOption, match="chunk_s"):
        ENGINE.generate(request_for(SPECS["calm"]), chunk_s)


def test_work_is_done_when_asked_for_and_stops_when_closed(monkeypatch):
    blocks = 0
    process = Room.process

    def counted(self, mix):
        nonlocal blocks
        blocks += 1
        return process(self, mix)

    monkeypatch.setattr(Room, "process", counted)
    chunks = ENGINE.generate(request_for(SPECS["solo"], 600.0), 1.0)
    assert blocks == 0
    next(chunks)
    assert blocks <= 1 + (SAMPLE_RATE + Limiter.DELAY) // BLOCK
    chunks.close()
    assert list(chunks) == []
    assert blocks <= 1 + (SAMPLE_RATE + Limiter.DELAY) // BLOCK


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_every_instrument_of_the_tutti_is_audible(instrument):
    """Within 32 dB of the whole, even when twenty play."""
    assert loudness(instrument) > loudness(None) - 32


@lru_cache
def library() -> SampleLibrary:
    return SampleLibrary()


@lru_cache
def loudness(instrument: str | None) -> float:
    """Gated loudness of one instrument's strokes in the tutti (all of them for None), before mastering."""
    phrases = compose(ConstantPlan(SPECS["tutti"], ""), 1, DURATION_S)
    starting: dict[int, list[Stroke]] = {}
    for stroke in (s for phrase in phrases for s in perform(phrase, 1) if instrument in (None, s.instrument)):
        starting.setdefault(round(stroke.start_s * SAMPLE_RATE) // BLOCK, []).append(stroke)
    renderer = Renderer(library())
    blocks = range(round(DURATION_S * SAMPLE_RATE) // BLOCK)
    dry = np.concatenate([renderer.block(starting.get(block, []))[:2] for block in blocks], axis=1)
    return integrated_loudness(10 ** (level_curve_db(dry, SAMPLE_RATE) / 10))


def test_louder_is_brighter():
    def centroid_hz(dynamics: str) -> float:
        sound = play(request_for(MusicSpec(70, "ionian", "C", ("piano", "strings", "violin"), dynamics), 12.0))
        return float(np.median(librosa.feature.spectral_centroid(y=sound.mean(axis=1), sr=SAMPLE_RATE)))

    assert centroid_hz("pp") < 0.9 * centroid_hz("mp") < 0.9 * centroid_hz("f")


@pytest.mark.parametrize("pitch", [41, 55, 60, 63, 70, 74])
@pytest.mark.parametrize("instrument", ["piano", "strings", "cello"])
def test_notes_are_in_tune(instrument, pitch):
    note = library().note(instrument, pitch, 0, 3.0).mean(axis=0)[2000 : 2 * SAMPLE_RATE]
    spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note)), 1 << 19)) ** 2
    expected = 440 * 2 ** ((pitch - 69) / 12) * (1 << 19) / SAMPLE_RATE
    bins = np.arange(round(expected * 2 ** (-60 / 1200)), round(expected * 2 ** (60 / 1200)))
    centre = np.average(bins, weights=spectrum[bins] ** 2)
    assert abs(1200 * np.log2(centre / expected)) < 15


def test_the_limiter_holds_its_ceiling_and_leaves_quiet_sound_alone():
    rng = np.random.default_rng(0)
    quiet = (0.05 * rng.standard_normal((2, 4 * BLOCK))).astype(np.float32)
    loud = quiet.copy()
    loud[:, 9000:9400] *= 60
    for sound in (quiet, loud):
        limiter = Limiter()
        blocks = np.split(np.pad(sound, ((0, 0), (0, BLOCK))), 5, axis=1)
        out = np.concatenate([limiter.process(block) for block in blocks], axis=1)
        peak = np.abs(scipy.signal.resample_poly(out, 4, 1, axis=1)).max()
        assert 20 * np.log10(peak) < CEILING_DB + 0.4
    limiter = Limiter()
    same = np.concatenate([limiter.process(block) for block in np.split(quiet, 4, axis=1)], axis=1)
    np.testing.assert_array_equal(same[:, Limiter.DELAY :], quiet[:, : -Limiter.DELAY])


def test_the_loudness_meter_agrees_with_pyloudnorm():
    sound = piece("folk")
    ours = integrated_loudness(10 ** (level_curve_db(np.ascontiguousarray(sound.T), SAMPLE_RATE) / 10))
    assert ours == pytest.approx(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(sound), abs=0.1)
