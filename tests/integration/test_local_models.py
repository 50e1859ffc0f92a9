"""The models in this process answer as the server does: `pytest tests/integration/test_local_models.py`.

Both are asked the same; what takes time, and so differs, is left out. Needs `attune export`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf

from attune_client import LocalClient
from attune_client.client import BaseClient
from attune_client.protocol import errors, models
from attune_client.protocol.errors import AttuneError
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.serving.local import LocalModels
from attune_ensemble.speech.audio import decode_speech
from tests.conftest import ROOT, SAMPLES

pytestmark = pytest.mark.server

REPOSITORY = ROOT / "model_repository"
TIMES = {"transcribe_s", "recognise_s", "prompt_s"}
TOLERANCE = 1e-5
HARP = '{"tempo_bpm": 60, "mode": "lydian", "tonic": "F", "instruments": ["harp"], "dynamics": "p"}'


@pytest.fixture(scope="module")
def models_here() -> Iterator[LocalModels]:
    with LocalModels(REPOSITORY) as local:
        yield local


@pytest.fixture(scope="module")
def local(models_here: LocalModels) -> LocalClient:
    return LocalClient(models_here)


def texts(*values: bytes | str) -> np.ndarray:
    return np.array(values, dtype=np.object_)


def assert_equal(here: dict[str, np.ndarray], there: dict[str, np.ndarray]) -> None:
    """The same tensors: numbers of 32 bits within `TOLERANCE`, all others to the bit."""
    assert here.keys() == there.keys()
    for name in here.keys() - TIMES:
        assert (here[name].dtype, here[name].shape) == (there[name].dtype, there[name].shape), name
        if here[name].dtype == np.float32:
            np.testing.assert_allclose(here[name], there[name], rtol=0, atol=TOLERANCE, err_msg=name)
        else:
            np.testing.assert_array_equal(here[name], there[name], err_msg=name)


def assert_same_answer(local: BaseClient, client: BaseClient, model: models.ModelSpec, inputs) -> None:
    assert_equal(local.infer(model, inputs), client.infer(model, inputs))


def assert_same_music(local: BaseClient, client: BaseClient, inputs) -> None:
    """The same responses; the music to the last bit."""
    here, there = (list(one.stream(models.MUSIC_THERAPY, inputs)) for one in (local, client))
    assert len(here) == len(there) > 1
    assert_equal(here[0], there[0])
    for one, other in zip(here[1:], there[1:], strict=True):
        np.testing.assert_array_equal(one["music"], other["music"])


# --- answers ---


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_recording_is_heard_alike(local, client, path):
    assert_same_answer(local, client, models.SPEECH_EMOTION, {"audio": texts(path.read_bytes())})


def test_a_narration_of_several_segments_is_heard_alike(local, client, samples):
    pause = np.zeros(20_000, np.float32)
    parts = [part for path in samples for part in (decode_speech(path.read_bytes()), pause)]
    narration = io.BytesIO()
    sf.write(narration, np.concatenate(parts), 16_000, format="FLAC")
    inputs = {"audio": texts(narration.getvalue())}
    assert len(local.infer(models.SPEECH_EMOTION, inputs)["segment_start_s"]) >= len(samples)
    assert_same_answer(local, client, models.SPEECH_EMOTION, inputs)


@pytest.mark.parametrize(
    "wish",
    [
        {"text": texts("rain on the window, and nowhere to be")},
        {"text": texts(b"a quiet evening after a long day")},
        {"emotion": texts("calm"), "vad": np.array([4.0, 1.5, 3.5], np.float32)},
        {"music_spec": texts(HARP)},
    ],
    ids=["text", "bytes", "emotion", "specification"],
)
def test_a_wish_becomes_the_same_prompt(local, client, wish):
    assert_same_answer(local, client, models.MUSIC_PROMPT, wish)


def test_every_emotion_becomes_the_same_prompt(local, client):
    for emotion in load_emotions():
        assert_same_answer(local, client, models.MUSIC_PROMPT, {"emotion": texts(emotion.label)})


def test_the_ensemble_answers_alike(local, client, samples):
    """Rows of several lengths, one of them padded further than its bucket."""
    waveforms = [decode_speech(path.read_bytes()) for path in samples]
    rows = np.stack([np.pad(waveform, (0, 128_000 - len(waveform))) for waveform in waveforms])
    inputs = {
        "waveform": rows,
        "num_samples": np.array([[len(waveform)] for waveform in waveforms], np.int64),
        "transcript": texts(*(f"words of number {n}, " * 3**n for n in range(len(waveforms))))[:, None],
    }
    assert_same_answer(local, client, models.EMOTION_RECOGNITION, inputs)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_recording_becomes_the_same_music(local, client, path):
    options = {"duration_s": np.array([4], np.float32), "seed": np.array([7])}
    assert_same_music(local, client, {"audio": texts(path.read_bytes())} | options)


@pytest.mark.parametrize("wish", [{"text": texts("to the sea")}, {"vad": np.array([4, 2, 3], np.float32)}])
def test_a_wish_becomes_the_same_music(local, client, wish):
    assert_same_music(local, client, wish | {"duration_s": np.array([2.5], np.float32), "seed": np.array([11])})


def test_the_clients_results_are_the_same(local, client, samples):
    here, there = (one.analyse(samples[0]) for one in (local, client))
    assert replace(here, vad=None, probabilities={}, segments=(), transcribe_s=0, recognise_s=0) == replace(
        there, vad=None, probabilities={}, segments=(), transcribe_s=0, recognise_s=0
    )
    with local.play(samples[0], duration_s=1, seed=3) as stream:
        session = stream.session
        assert sum(len(chunk) for chunk in stream) == session.sample_rate
    assert (session.engine, session.seed, session.emotion) == ("composer", 3, here.emotion)


# --- errors ---


def outcome(client: BaseClient, model: models.ModelSpec, inputs) -> tuple[type[AttuneError], str]:
    with pytest.raises(AttuneError) as caught:
        list(client.stream(model, inputs)) if model.decoupled else client.infer(model, inputs)
    return type(caught.value), str(caught.value)


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def audio(encoded: bytes) -> dict[str, np.ndarray]:
    return {"audio": texts(encoded)}


WHOLE = SAMPLES[0].read_bytes()
WRONG = [
    pytest.param(models.SPEECH_EMOTION, audio(b"hello, this is text" * 100), errors.UnreadableAudio, id="text"),
    pytest.param(models.SPEECH_EMOTION, audio(b""), errors.EmptyAudio, id="empty"),
    pytest.param(models.SPEECH_EMOTION, audio(WHOLE[: len(WHOLE) // 3]), errors.TruncatedAudio, id="truncated"),
    pytest.param(models.SPEECH_EMOTION, audio(wav(np.zeros(16_000))), errors.SilentAudio, id="silence"),
    pytest.param(models.MUSIC_THERAPY, audio(b"no recording"), errors.UnreadableAudio, id="text, for music"),
    pytest.param(
        models.SPEECH_EMOTION,
        audio(WHOLE) | {"other_languages": texts("all")},
        errors.InvalidOption,
        id="other_languages",
    ),
    pytest.param(models.SPEECH_EMOTION, {}, errors.InvalidOption, id="nothing"),
    pytest.param(models.MUSIC_PROMPT, {"emotion": texts("hangry")}, errors.InvalidOption, id="unknown emotion"),
    pytest.param(models.MUSIC_PROMPT, {"text": texts(b"\xff")}, errors.InvalidRequest, id="not UTF-8"),
    pytest.param(models.MUSIC_PROMPT, {"vad": np.ones(3)}, errors.InvalidOption, id="another type"),
    pytest.param(models.MUSIC_PROMPT, {"mood": texts("calm")}, errors.InvalidOption, id="unknown input"),
    pytest.param(
        models.MUSIC_THERAPY, audio(WHOLE) | {"text": texts("calm")}, errors.InvalidOption, id="audio and text"
    ),
    pytest.param(models.MUSIC_THERAPY, {}, errors.InvalidOption, id="no wish"),
    pytest.param(models.MUSIC_THERAPY, {"emotion": texts("hangry")}, errors.InvalidOption, id="unknown, for music"),
    pytest.param(
        models.MUSIC_THERAPY,
        {"text": texts("calm"), "engine": texts("theremin")},
        errors.InvalidOption,
        id="unknown engine",
    ),
    pytest.param(
        models.MUSIC_THERAPY,
        {"text": texts("calm"), "duration_s": np.array([0.01], np.float32)},
        errors.InvalidOption,
        id="too short",
    ),
    pytest.param(
        models.SENTENCE_ENCODER,
        {"sentence_ids": np.full((1, 4), 10**6), "sentence_mask": np.ones((1, 4), np.int64)},
        errors.InvalidRequest,
        id="tokens that do not exist",
    ),
]


@pytest.mark.parametrize(("model", "inputs", "kind"), WRONG)
def test_what_is_wrong_is_said_in_the_same_words(local, client, model, inputs, kind):
    here, there = (outcome(one, model, inputs) for one in (local, client))
    assert here == there
    assert here[0] is kind


def test_a_deadline_that_passes_is_the_same_error(local, client):
    inputs = audio(WHOLE) | {"deadline_s": np.array([0.01], np.float32)}
    here, there = (outcome(one, models.SPEECH_EMOTION, inputs) for one in (local, client))
    assert here[0] is there[0] is errors.RequestTimeout


# --- what only a process of one's own has ---


def test_a_cancelled_request_ends_between_two_pieces_of_work(models_here):
    given_up = threading.Event()
    stream = models_here.call_stream(
        "music_therapy", {"emotion": texts("calm")}, context=CallContext(is_cancelled=given_up.is_set)
    )
    assert "prompt" in next(stream)
    given_up.set()
    with pytest.raises(errors.RequestCancelled):
        list(stream)


def test_several_threads_share_the_models(models_here, samples):
    recordings = [path.read_bytes() for path in samples]
    with ThreadPoolExecutor(len(recordings)) as pool:
        together = list(pool.map(lambda one: models_here.call("speech_emotion", audio(one)), recordings))
    for recording, answer in zip(recordings, together, strict=True):
        assert_equal(answer, models_here.call("speech_emotion", audio(recording)))


def test_closed_models_answer_no_more():
    with LocalModels(REPOSITORY) as local:
        tokens = local.call("text_tokenizer", {"transcript": texts("calm")[None]})
    assert tokens["input_ids"].shape == tokens["sentence_ids"].shape == (1, 16)
    with pytest.raises(errors.InvalidRequest, match="closed"):
        local.call("text_tokenizer", {"transcript": texts("calm")[None]})
