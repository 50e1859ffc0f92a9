"""Decoding recordings, and naming what is wrong with them: `pytest tests/unit/test_audio.py`."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile as sf

from attune_client.protocol import errors
from attune_ensemble.speech import audio as audio_module
from attune_ensemble.speech.audio import MonoStream, decode_speech, level_dbfs

TONE_HZ = 440.0


def tone(duration_s: float, rate: int, amplitude: float = 0.3) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.float32)


def encode(samples: np.ndarray, rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 2), (48_000, 1)])
def test_any_format_rate_and_channel_count_becomes_16k_mono(container, subtype, rate, channels):
    samples = np.repeat(tone(1.0, rate)[:, None], channels, axis=1)
    waveform = decode_speech(encode(samples, rate, container, subtype))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) == pytest.approx(16_000, abs=1_700)  # MP3 pads its first and last frame
    peak_hz = np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform)
    assert peak_hz == pytest.approx(TONE_HZ, abs=2)


def test_channels_are_averaged():
    left, right = tone(0.5, 16_000, 0.4), np.zeros(8_000, np.float32)
    waveform = decode_speech(encode(np.stack([left, right], axis=1), 16_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(waveform, left / 2, atol=1e-6)


def test_a_long_file_is_resampled_without_seams():
    rate = 44_100
    waveform = decode_speech(encode(tone(25.0, rate), rate, "WAV", "FLOAT"))  # three blocks
    expected = tone(25.0, 16_000)[: len(waveform)]
    np.testing.assert_allclose(waveform[200:-200], expected[200:-200], atol=1e-3)


WAV = encode(tone(1.0, 16_000), 16_000)
FLAC = encode(tone(3.0, 16_000), 16_000, "FLAC")
OGG = encode(tone(3.0, 16_000), 16_000, "OGG")
NOT_A_NUMBER = np.where(np.arange(16_000) == 7_000, np.nan, tone(1.0, 16_000))


@pytest.mark.parametrize(
    ("encoded", "error", "words"),
    [
        pytest.param(b"", errors.EmptyAudio, "empty", id="no bytes"),
        pytest.param(encode(np.zeros((0, 1)), 16_000), errors.EmptyAudio, "no samples", id="no samples"),
        pytest.param(b"%PDF-1.7 not a recording" * 50, errors.UnreadableAudio, "WAV, FLAC", id="a document"),
        pytest.param(b"RIFF", errors.UnreadableAudio, "WAV, FLAC", id="four bytes"),
        pytest.param(WAV[: len(WAV) // 2], errors.TruncatedAudio, "header announces", id="half a WAV"),
        pytest.param(FLAC[: len(FLAC) // 2], errors.TruncatedAudio, "decoded past", id="half a FLAC"),
        pytest.param(OGG[: len(OGG) // 2], errors.TruncatedAudio, "OGG", id="half an OGG"),
        pytest.param(encode(NOT_A_NUMBER, 16_000, "WAV", "FLOAT"), errors.NonFiniteAudio, "NaN", id="NaN"),
        pytest.param(encode(np.zeros(16_000), 16_000), errors.SilentAudio, "silent", id="silence"),
        pytest.param(encode(np.full(16_000, 0.5), 16_000), errors.SilentAudio, "silent", id="a constant offset"),
        pytest.param(encode(np.zeros(8_000 * 601), 8_000), errors.AudioTooLong, "600 s", id="over ten minutes"),
    ],
)
def test_each_fault_has_its_own_error(encoded, error, words):
    with pytest.raises(error, match=words) as caught:
        decode_speech(encoded)
    assert type(caught.value) is error


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_ten_minutes_to_the_sample_are_taken(rate_hz):
    """Seconds that are added up block by block come to a hair more."""
    stream = MonoStream()
    left = 600 * rate_hz
    while left:
        block = np.full((min(left, 2**16), 1), 0.1, np.float32)
        stream.add(block, rate_hz)
        left -= len(block)
    assert len(stream.finish()) == 600 * 16_000
    with pytest.raises(errors.AudioTooLong):
        stream.add(np.zeros((1, 1), np.float32), rate_hz)


def test_the_lengths_of_several_rates_in_one_stream_are_added():
    stream = MonoStream()
    for rate_hz, seconds in ((8_000, 300), (16_000, 300)):
        stream.add(np.full((seconds * rate_hz, 1), 0.1, np.float32), rate_hz)
    with pytest.raises(errors.AudioTooLong):
        stream.add(np.zeros((1, 1), np.float32), 16_000)


def test_a_stream_of_unknown_length_is_not_called_truncated():
    piped = bytearray(WAV)
    piped[4:8] = b"\xff\xff\xff\xff"
    assert len(decode_speech(bytes(piped))) == 16_000


@pytest.mark.parametrize(("kind", "order"), [("WAV", "little"), ("AIFF", "big")])
@pytest.mark.parametrize("told", ["what is left", "nothing"])
def test_sound_that_goes_on_beyond_its_file_was_cut_off(kind, order, told):
    """Whatever the header says of the file as a whole: a program that copies half a recording may set that right."""
    half = bytearray(encode(tone(1.0, 16_000), 16_000, kind)[:16_000])
    half[4:8] = (len(half) - 8 if told == "what is left" else 0).to_bytes(4, order)
    with pytest.raises(errors.TruncatedAudio, match="header announces"):
        decode_speech(bytes(half))


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "CAF", "AU"])
def test_a_whole_file_with_an_odd_chunk_before_its_sound_is_whole(kind):
    assert len(decode_speech(encode(tone(1.0, 16_001), 16_001, kind, "PCM_24"))) > 15_000
    if kind in ("WAV", "AIFF"):
        order, whole = ("little", WAV) if kind == "WAV" else ("big", encode(tone(1.0, 16_000), 16_000, "AIFF"))
        note = (b"LIST" if kind == "WAV" else b"NAME") + (3).to_bytes(4, order) + b"abc\0"
        longer = whole[:4] + (len(whole) + len(note) - 8).to_bytes(4, order) + whole[8:12] + note + whole[12:]
        assert len(decode_speech(longer)) == 16_000


def test_length_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(audio_module, "_read_mono_16k", lambda file: pytest.fail("decoded an over-long file"))
    with pytest.raises(errors.AudioTooLong):
        decode_speech(encode(np.zeros(8_000 * 601), 8_000))


def test_level_of_a_sine_is_its_power():
    assert level_dbfs(tone(1.0, 16_000, amplitude=1.0)) == pytest.approx(-3.01, abs=0.05)
    assert level_dbfs(np.zeros(100, np.float32)) == float("-inf")
