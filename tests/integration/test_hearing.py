"""What people really send, through the server: `pytest tests/integration/test_hearing.py` (after `attune export`)."""

from __future__ import annotations

import pytest
from tools.hearing import humming, laughter

from attune_client.protocol import errors
from attune_ensemble.speech.audio import decode_speech
from tests.recordings import scrambled, with_pyav, with_soundfile

RATE = 16_000


@pytest.fixture(scope="module")
def phone_recording(samples) -> bytes:
    return with_pyav(decode_speech(samples[1].read_bytes()), RATE, "ipod", "aac")


def test_a_phones_recording_says_the_same_as_the_original(client, samples, phone_recording):
    result = client.analyse(phone_recording)
    assert "rather selfish is to be ill-disposed" in result.transcript
    assert (result.language, result.language_probability > 0.9) == ("en", True)
    assert result.vad.valence == pytest.approx(client.analyse(samples[1]).vad.valence, abs=0.3)


def test_a_protected_recording_is_refused_and_the_next_one_read(client, phone_recording):
    with pytest.raises(errors.UnreadableAudio, match="protected"):
        client.analyse(scrambled(phone_recording))
    assert client.analyse(phone_recording).transcript


def test_laughter_has_a_mood_and_no_words(client):
    result = client.analyse(with_soundfile(laughter(220, 4, "e"), RATE))
    assert result.transcript == ""
    assert result.segments
    assert all(1 <= value <= 5 for value in result.vad.to_dict().values())


def test_humming_is_no_speech(client):
    with pytest.raises(errors.NoSpeech):
        client.analyse(with_soundfile(humming(160), RATE))


def test_what_becomes_of_other_languages_can_be_asked_for(client, samples):
    english = samples[1].read_bytes()
    assert client.analyse(english, other_languages="voice").transcript.startswith("Unless")
    with pytest.raises(errors.InvalidOption, match="one of refuse, voice"):
        client.analyse(english, other_languages="sing")
    with pytest.raises(errors.InvalidOption, match="one of refuse, voice"):
        client.play(english, duration_s=1, other_languages="sing")
    with client.play(english, duration_s=1, other_languages="voice") as stream:
        assert stream.session.speech.language == "en"
