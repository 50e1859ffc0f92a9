"""The served pipeline on real speech: `pytest tests/integration/test_pipeline.py` (after `attune export`)."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tritonclient.grpc as grpc

from attune_client import AsyncAttuneClient
from attune_client.protocol import errors, models
from attune_client.protocol.models import SPEECH_SAMPLE_RATE
from attune_client.protocol.tensors import bytes_tensor, text_of
from attune_client.results import SpeechEmotion
from attune_client.wire import speech_inputs
from attune_ensemble.prompting.gentle import gentle_emotions, nearest_emotion
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.speech.audio import decode_speech
from attune_ensemble.speech.overall import overall_vad
from attune_ensemble.speech.tokens import TextTokenizer
from tests.conftest import ROOT

WORDS = {
    "sense_and_sensibility_0870.wav": "leisure to consider how much there might be prudently in his power",
    "sense_and_sensibility_0890.wav": "and rather selfish is to be ill-disposed",
    "sense_and_sensibility_0920.wav": "he might have been made still more respectable than he was",
}


@pytest.fixture(scope="session")
def narration(samples) -> bytes:
    """Half a minute: the three sentences with pauses between, twice, as one FLAC file."""
    pause = np.zeros(20_000, np.float32)
    parts = [part for path in samples * 2 for part in (decode_speech(path.read_bytes()), pause)]
    buffer = io.BytesIO()
    sf.write(buffer, np.concatenate(parts), 16_000, format="FLAC")
    return buffer.getvalue()


def test_every_model_is_ready(client):
    states = {status.name: status.state for status in client.models()}
    assert states == dict.fromkeys(models.MODELS, "READY")
    assert client.is_ready()


def test_the_words_are_the_spoken_ones(client, samples):
    for path in samples:
        result = client.analyse(path)
        assert WORDS[path.name] in result.transcript
        assert len(result.segments) == 1


def test_emotion_probabilities_and_ranges(client, samples):
    result = client.analyse(samples[0])
    assert list(result.probabilities) == [emotion.label for emotion in load_emotions()]
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-4)
    assert result.emotion == max(result.probabilities, key=result.probabilities.__getitem__)
    assert [segment.emotion for segment in result.segments] == [result.emotion]  # one segment is the whole
    assert all(1 <= value <= 5 for value in result.vad.to_dict().values())


def test_a_narration_is_cut_at_pauses_and_the_whole_is_that_of_the_rule(client, narration):
    result = client.analyse(narration)
    assert len(result.segments) >= 6
    assert all(0 < s.end_s - s.start_s <= 8 for s in result.segments)
    lengths = [(s.end_s - s.start_s) * SPEECH_SAMPLE_RATE for s in result.segments]
    expected = overall_vad([list(s.vad.to_dict().values()) for s in result.segments], lengths)
    np.testing.assert_allclose(list(result.vad.to_dict().values()), expected, atol=2e-3)
    assert all(WORDS[name] in result.transcript for name in WORDS)
    labels = {emotion.label for emotion in load_emotions()}
    assert {segment.emotion for segment in result.segments} <= labels


def test_the_emotion_of_a_wish_in_vad_is_that_of_the_classifier_alone(client):
    """A wish is what it is: no error is assumed, and there are no words."""
    for emotion in load_emotions()[::8]:
        with client.play(vad=emotion.anchor, duration_s=1) as stream:
            assert stream.session.emotion == emotion.label


def test_an_answer_names_the_next_most_probable_emotions(client, narration):
    result = client.analyse(narration)
    ranked = sorted(result.probabilities, key=result.probabilities.__getitem__, reverse=True)
    assert [result.emotion, *result.neighbours] == ranked[:3]


def test_an_ensemble_request_does_not_depend_on_its_neighbours(client, samples):
    """Batched with a longer one, and padded further, a segment gets the same answer."""
    short, long = (decode_speech(path.read_bytes()) for path in (samples[1], samples[0]))

    def rows(*waveforms, length):
        return np.stack([np.pad(w, (0, length - len(w))) for w in waveforms])

    def ask(waveform, lengths, texts):
        inputs = {
            "waveform": waveform,
            "num_samples": np.array([[n] for n in lengths], np.int64),
            "transcript": np.array([[t.encode()] for t in texts], dtype=np.object_),
        }
        return client.infer(models.EMOTION_RECOGNITION, inputs)["vad"]

    alone = ask(rows(short, length=96_000), [len(short)], ["ill disposed"])
    together = ask(rows(short, long, length=128_000), [len(short), len(long)], ["ill disposed", "power " * 30])
    np.testing.assert_allclose(together[0], alone[0], atol=1e-3)


def test_the_tokenizer_model_is_the_library(client):
    text = "He was not an ill-disposed young man."
    served = client.infer(models.TEXT_TOKENIZER, {"transcript": np.array([[text.encode()]], dtype=np.object_)})
    folder = ROOT / "model_repository/text_tokenizer/1/tokenizers"
    for file, ids, mask in (
        ("regressors.json", "input_ids", "attention_mask"),
        ("sentences.json", "sentence_ids", "sentence_mask"),
    ):
        tokens = TextTokenizer(folder / file)([text])
        np.testing.assert_array_equal(served[ids], tokens.input_ids)
        np.testing.assert_array_equal(served[mask], tokens.attention_mask)


def test_every_emotion_retrieves_itself(client):
    for emotion in load_emotions():
        inputs = {"emotion": np.array([emotion.label.encode()], dtype=np.object_)}
        answer = client.infer(models.MUSIC_PROMPT, inputs)
        assert answer["retrieved_emotion"][0].decode() == emotion.label
        assert answer["description"][0].decode() == emotion.description


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I feel furious and ready to shout", "furious"),
        ("I feel so alone since she left", "lonely"),
        ("music to fall asleep", "sleepy"),
    ],
)
def test_free_text_finds_a_fitting_description(client, text, label):
    found = client.prompt(text)
    assert found.retrieved_emotion == label
    assert found.description == next(e.description for e in load_emotions() if e.label == label)
    assert 0.2 < found.similarity < 1
    assert found.prompt_writer == "template"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"emotion": "hangry"}, "hangry"),
        ({}, "emotion or text"),
        ({"emotion": "calm", "text": "calm"}, "not both"),
        ({"text": "  "}, "empty"),
    ],
)
def test_prompt_requests_that_make_no_sense(client, inputs, words):
    tensors = {name: np.array([value.encode()], dtype=np.object_) for name, value in inputs.items()}
    with pytest.raises(errors.InvalidOption, match=words):
        client.infer(models.MUSIC_PROMPT, tensors)


# --- music ---


def test_the_session_comes_first_then_the_music(client, samples):
    with client.play(samples[0], duration_s=8, seed=5) as stream:
        session = stream.session
        chunks = list(stream)
    assert session.engine == "composer"
    assert session.sample_rate == 32_000
    assert session.prompt.retrieved_emotion == session.speech.emotion
    assert session.speech.emotion in session.prompt.prompt
    assert all(chunk.dtype == np.float32 and chunk.shape[1] == 2 for chunk in chunks)
    assert max(len(chunk) for chunk in chunks) <= 1.1 * 32_000
    music = np.concatenate(chunks)
    assert len(music) == 8 * 32_000
    assert np.abs(music).max() > 0.05


def test_one_seed_one_piece(client, samples):
    pieces = []
    for seed in (1, 1, 2):
        with client.play(samples[1], duration_s=4, seed=seed) as stream:
            pieces.append(np.concatenate(list(stream)))
    np.testing.assert_array_equal(pieces[0], pieces[1])
    assert not np.array_equal(pieces[0], pieces[2])


def wait_for_log(server, position: int, words: str) -> None:
    """Wait until the server's log says something after a position."""
    deadline = time.monotonic() + 10
    while not re.search(words, server.log_file.read_text(errors="replace")[position:]):
        assert time.monotonic() < deadline, "the generator went on"
        time.sleep(0.1)


def test_cancelling_stops_the_work(client, server, samples):
    """A ten-minute piece given up after two chunks leaves nothing running that would delay the next request."""
    before = server.log_file.stat().st_size
    stream = client.play(samples[0], duration_s=600, seed=1)
    for _ in range(2):
        next(stream)
    stream.close()
    wait_for_log(server, before, "music_generator: given up")


# --- deadlines ---


def transcriptions(server) -> int:
    with grpc.InferenceServerClient(server.grpc_url) as triton:
        return triton.get_inference_statistics("speech_to_text").model_stats[0].execution_count


def test_a_deadline_that_is_over_at_once_is_refused_before_the_speech_is_transcribed(client, server, samples):
    before = transcriptions(server)
    for call in (client.analyse, client.play):
        with pytest.raises(errors.RequestTimeout, match=r"^the deadline passed before \w+ was done$"):
            call(samples[0], deadline_s=1e-6)
    assert transcriptions(server) == before


def seconds_until(client, music_s: float) -> float:
    """How long it takes on this machine until so much of ten minutes of music has come."""
    started = time.monotonic()
    with client.play_text("calm", duration_s=600, seed=1) as stream:
        while stream.received_s < music_s:
            next(stream)
    return time.monotonic() - started


def test_a_deadline_in_the_middle_of_the_music_ends_it_and_hurts_nobody_else(client, server):
    deadline_s = seconds_until(client, 100)  # so it comes in the middle however fast the machine is
    log_size = server.log_file.stat().st_size
    hurried = client.play_text("calm", duration_s=600, seed=1, deadline_s=deadline_s)
    with client.play_text("calm", duration_s=5, seed=1) as other:
        assert next(hurried).shape[1] == 2
        assert sum(map(len, other)) == 5 * 32_000
    with pytest.raises(errors.RequestTimeout, match=r"^the deadline passed before \w+ was done$"):
        for _ in hurried:
            pass
    assert 0 < hurried.received_s < 600
    wait_for_log(server, log_size, r"music_generator: (not done in time|given up)")


def test_a_deadline_while_a_recording_is_transcribed_ends_the_transcription(client, server, narration):
    """Thirteen times a narration takes far longer than the narration alone, window by window."""
    sound, rate = sf.read(io.BytesIO(narration))
    buffer = io.BytesIO()
    sf.write(buffer, np.tile(sound, 13), rate, format="FLAC")
    started = time.monotonic()
    assert client.analyse(narration).transcript
    alone_s = time.monotonic() - started
    with pytest.raises(errors.RequestTimeout, match="before"):
        client.analyse(buffer.getvalue(), deadline_s=alone_s)
    started = time.monotonic()
    assert client.analyse(narration, deadline_s=120).transcript  # the one place for transcriptions is free again
    assert time.monotonic() - started < 6 * alone_s  # one or two; behind the other twelve it would be thirteen


def test_enough_time_changes_nothing(client, samples):
    with client.play(samples[0], duration_s=2, seed=5, deadline_s=600) as stream:
        hurried = np.concatenate(list(stream))
    with client.play(samples[0], duration_s=2, seed=5) as stream:
        np.testing.assert_array_equal(np.concatenate(list(stream)), hurried)


@pytest.mark.parametrize(
    ("options", "words"), [({"engine": "theremin"}, "theremin"), ({"duration_s": 0.01}, "duration_s")]
)
def test_unplayable_options_are_refused_before_the_speech_is_transcribed(client, server, samples, options, words):
    before = transcriptions(server)
    inputs = {"audio": np.array([samples[0].read_bytes()], dtype=np.object_)}
    tensors = {
        "engine": lambda value: np.array([value.encode()], dtype=np.object_),
        "duration_s": lambda value: np.array([value], np.float32),
    }
    raw = inputs | {name: tensors[name](value) for name, value in options.items()}
    for call in (lambda: client.play(samples[0], **options), lambda: next(client.stream(models.MUSIC_THERAPY, raw))):
        with pytest.raises(errors.InvalidOption, match=words):
            call()
    assert transcriptions(server) == before


# --- music without a recording ---


def sound_of(stream) -> np.ndarray:
    with stream:
        return np.concatenate(list(stream))


@pytest.mark.parametrize(
    ("source", "emotion"),
    [
        ({"text": "rain on the window, and nowhere to be"}, None),
        ({"emotion": "calm"}, "calm"),
        ({"emotion": "calm", "vad": (4.0, 1.5, 3.5)}, "calm"),
        ({"spec": {"tempo_bpm": 60, "mode": "lydian", "tonic": "F", "instruments": ["harp"], "dynamics": "p"}}, None),
    ],
)
def test_a_wish_becomes_music_and_its_session_makes_it_again(client, source, emotion):
    stream = client.play(**source, duration_s=2)
    session = stream.session
    assert (session.speech, session.emotion, session.duration_s) == (None, emotion, 2.0)
    assert (session.vad is not None) == ("vad" in source)
    assert (session.prompt.retrieved_emotion is None) == ("spec" in source)
    music = sound_of(stream)
    assert len(music) == 2 * session.sample_rate
    told = json.loads(json.dumps(session.to_dict()))
    again = {name: told[name] for name in ("seed", "duration_s", "engine")}
    np.testing.assert_array_equal(sound_of(client.play(spec=told["music_spec"], text=told["prompt"], **again)), music)


def test_a_vad_alone_becomes_the_emotion_that_it_is(client):
    calm = next(emotion for emotion in load_emotions() if emotion.label == "calm")
    with client.play(vad=calm.anchor, duration_s=1) as stream:
        assert stream.session.emotion == stream.session.prompt.retrieved_emotion == "calm"
        assert max(stream.session.probabilities, key=stream.session.probabilities.__getitem__) == "calm"


def test_seeds_are_drawn_and_told(client):
    sessions = [client.play_text("calm", duration_s=1).session for _ in range(2)]
    assert sessions[0].seed != sessions[1].seed
    assert sessions[0].to_dict()["versions"]["server"] == sessions[0].to_dict()["versions"]["client"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "got none"),
        ({"text": "calm", "emotion": "calm"}, "got text and emotion"),
        ({"emotion": "hangry"}, "'hangry' is not one"),
        ({"emotion": "x" * 10**6}, "is not one of the 40 emotions"),
        ({"music_spec": "{}"}, "JSON object"),
    ],
)
def test_the_server_too_refuses_wishes_that_make_no_sense(client, inputs, words):
    tensors = {name: np.array([value.encode()], dtype=np.object_) for name, value in inputs.items()}
    with pytest.raises(errors.InvalidOption, match=words):
        next(client.stream(models.MUSIC_THERAPY, tensors))


async def test_the_asyncio_client_streams_and_cancels(server, samples):
    async with AsyncAttuneClient(server.grpc_url) as client:
        assert await client.is_ready()
        assert {status.state for status in await client.models()} == {"READY"}
        async with await client.play_text("calm", duration_s=1) as stream:
            assert sum([len(chunk) async for chunk in stream]) == 32_000
        async with await client.play(samples[0], duration_s=3, seed=5) as stream:
            music = np.concatenate([chunk async for chunk in stream])
        assert len(music) == 3 * 32_000
        async with await client.play(samples[0], duration_s=300) as stream:
            assert (await anext(stream)).shape[1] == 2
        assert (await client.analyse(samples[0])).emotion == stream.session.speech.emotion
        assert (await client.prompt("calm")).prompt


# --- words of a crisis ---


def test_a_recording_without_words_of_a_crisis_has_no_finds(client, samples):
    outputs = client.infer(models.SPEECH_EMOTION, speech_inputs(samples[0]))
    assert (outputs["crisis_kind"].shape, outputs["crisis_place"].shape) == ((0,), (0, 4))
    assert client.analyse(samples[0]).crisis == ()


def test_words_of_a_crisis_are_answered_with_gentle_music_and_are_in_no_log(client, server):
    words = "The drums roar and shout in triumph, and I want to die."
    with client.play(text=words, duration_s=1) as stream:
        session = stream.session
        assert len(list(stream)) >= 1
    [found] = session.crisis
    assert (found.kind, words[found.start : found.end]) == ("suicide", "want to die")
    gentle = {emotion.label for emotion in gentle_emotions(load_emotions())}
    assert session.prompt.retrieved_emotion in gentle
    assert session.prompt.music_spec["dynamics"] in ("pp", "p")
    with client.play(text=words.partition(",")[0], duration_s=1) as stream:
        assert stream.session.crisis == ()
        assert stream.session.prompt.retrieved_emotion not in gentle
    log = server.log_file.read_text().lower()
    assert "want to die" not in log
    assert "suicide" not in log


def test_whatever_vad_says_gentle_music_is_the_nearest(client):
    vad = (1.5, 4.3, 3.8)
    asked = {"emotion": bytes_tensor("furious"), "vad": np.array(vad, np.float32), "gentle": np.array([1], np.int32)}
    outputs = client.infer(models.MUSIC_PROMPT, asked)
    nearest = nearest_emotion(gentle_emotions(load_emotions()), vad)
    assert text_of(outputs["retrieved_emotion"]) == nearest.label
    assert text_of(outputs["description"]) == nearest.description


# --- what goes wrong ---


def bad_recordings() -> list:
    def wav(samples, rate=16_000, subtype="FLOAT"):
        buffer = io.BytesIO()
        sf.write(buffer, samples, rate, format="WAV", subtype=subtype)
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    time_s = np.arange(48_000) / 16_000
    whole = (ROOT / "samples" / "sense_and_sensibility_0870.wav").read_bytes()
    return [
        pytest.param(b"", errors.EmptyAudio, id="empty"),
        pytest.param(b"hello, this is text" * 100, errors.UnreadableAudio, id="text"),
        pytest.param(whole[: len(whole) // 3], errors.TruncatedAudio, id="truncated"),
        pytest.param(wav(np.zeros(16_000)), errors.SilentAudio, id="silence"),
        pytest.param(wav(np.full(16_000, np.nan)), errors.NonFiniteAudio, id="NaN"),
        pytest.param(wav(np.zeros(8_000 * 601), 8_000, "PCM_U8"), errors.AudioTooLong, id="too long"),
        pytest.param(wav(0.3 * np.sin(2 * np.pi * 440 * time_s)), errors.NoSpeech, id="a tone"),
        pytest.param(wav(0.05 * rng.standard_normal(48_000)), errors.NoSpeech, id="noise"),
    ]


@pytest.mark.parametrize(("encoded", "error"), bad_recordings())
def test_each_bad_recording_has_its_own_error(client, encoded, error):
    for call in (client.analyse, client.play):
        with pytest.raises(errors.AttuneError) as caught:
            call(encoded)
        assert type(caught.value) is error
        assert "Traceback" not in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_bad_recordings_do_not_hurt_good_ones(server, samples):
    good = samples[0].read_bytes()
    bad = [parameters.values[0] for parameters in bad_recordings()]
    async with AsyncAttuneClient(server.grpc_url) as client:
        expected = await client.analyse(good)
        recordings = [recording for pair in zip([good] * len(bad), bad, strict=True) for recording in pair]
        outcomes = await asyncio.gather(*(client.analyse(r) for r in recordings), return_exceptions=True)
    assert all(isinstance(outcome, errors.InvalidAudio) for outcome in outcomes[1::2])
    for outcome in outcomes[::2]:
        assert isinstance(outcome, SpeechEmotion)
        assert outcome.transcript == expected.transcript
        np.testing.assert_allclose(outcome.probability_array, expected.probability_array, atol=1e-3)


# --- what it costs ---


def test_serving_processes_are_torch_free_and_lean(server, client, samples):
    client.analyse(samples[0])
    peaks_kb = 0
    for process in (Path("/proc") / str(pid) for pid in server.process_ids()):
        assert "libtorch" not in (process / "maps").read_text(), f"{process.name} has loaded torch"
        status = (process / "status").read_text().splitlines()
        peaks_kb += next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peaks_kb < 4 * 1024 * 1024
