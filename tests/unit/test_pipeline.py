"""What the BLS models compute, with a stand-in for the server: `pytest tests/unit/test_pipeline.py`."""

from __future__ import annotations

import numpy as np
import pytest

from attune_client.protocol.errors import NoSpeech
from attune_client.protocol.models import MUSIC_PROMPT, SPEECH_EMOTION
from attune_ensemble.pipeline import recognise_speech, weighted_mean, write_prompt

LABELS = [f"emotion {i}" for i in range(40)]
AUDIO = np.array([b"a recording"], dtype=np.object_)


class FakeServer:
    """Answers as the models would, and remembers the calls: VAD of a segment is its number, 0, 1, 2 ..."""

    def __init__(self, num_segments: int) -> None:
        self.num_segments = num_segments
        self.calls: list[tuple[str, dict[str, np.ndarray]]] = []

    def __call__(self, model, inputs):
        self.calls.append((model, dict(inputs)))
        return getattr(self, model)(inputs)

    def speech_to_text(self, inputs):
        count = self.num_segments
        return {
            "waveform": np.arange(count, dtype=np.float32)[:, None].repeat(16_000, axis=1),
            "num_samples": np.full((count, 1), 16_000, np.int64),
            "start_s": np.arange(count, dtype=np.float32),
            "end_s": np.arange(count, dtype=np.float32) + 1,
            "transcript": np.array([[f"word{i}".encode()] for i in range(count)], dtype=np.object_),
            "language": np.array([b"en"], dtype=np.object_),
            "language_probability": np.array([0.9], np.float32),
        }

    def emotion_recognition(self, inputs):
        assert len(inputs["waveform"]) == len(inputs["num_samples"]) == len(inputs["transcript"]) <= 16
        return {"vad": inputs["waveform"][:, :3]}

    def emotion_classifier(self, inputs):
        assert inputs["valence"].shape == (1, 1)
        assert inputs["arousal_dominance"].shape == (1, 2)
        return {"emotion_probabilities": np.eye(40, dtype=np.float32)[7:8]}

    def music_prompt(self, inputs):
        return {"prompt": inputs["emotion"], "similarity": inputs["vad"][:1]}


def test_one_batch_carries_all_segments_of_two_minutes():
    server = FakeServer(16)
    outputs = recognise_speech(AUDIO, LABELS, server)
    assert [name for name, _ in server.calls] == ["speech_to_text", "emotion_recognition", "emotion_classifier"]
    assert outputs["segment_vad"].shape == (16, 3)


def test_longer_narrations_take_several_batches_and_lose_nothing():
    outputs = recognise_speech(AUDIO, LABELS, FakeServer(37))
    np.testing.assert_array_equal(outputs["segment_vad"][:, 0], np.arange(37))
    np.testing.assert_allclose(outputs["vad"], 18.0)
    assert outputs["transcript"][0].decode().split() == [f"word{i}" for i in range(37)]


def test_outputs_are_those_of_the_model_and_the_emotion_is_the_most_probable():
    outputs = recognise_speech(AUDIO, LABELS, FakeServer(2))
    assert set(outputs) == {tensor.name for tensor in SPEECH_EMOTION.outputs}
    assert outputs["emotion"].tolist() == [b"emotion 7"]
    for tensor in SPEECH_EMOTION.outputs:
        assert outputs[tensor.name].ndim == len(tensor.shape), tensor.name


def test_what_becomes_of_other_languages_is_passed_on():
    server, option = FakeServer(1), np.array([b"voice"], dtype=np.object_)
    recognise_speech(AUDIO, LABELS, server)
    recognise_speech(AUDIO, LABELS, server, option)
    asked = [inputs for name, inputs in server.calls if name == "speech_to_text"]
    assert [set(inputs) for inputs in asked] == [{"audio"}, {"audio", "other_languages"}]
    assert asked[1]["other_languages"] is option


def test_the_mean_counts_seconds():
    vad = np.array([[1, 2, 3], [5, 4, 3]], np.float32)
    np.testing.assert_allclose(weighted_mean(vad, np.array([3, 1])), [2.0, 2.5, 3.0])


def test_an_error_of_a_model_is_the_callers():
    def call(model, inputs):
        raise NoSpeech("none")

    with pytest.raises(NoSpeech):
        recognise_speech(AUDIO, LABELS, call)


def test_the_prompt_comes_with_its_time():
    emotion, vad = np.array([b"serene"], dtype=np.object_), np.ones(3, np.float32)
    outputs = write_prompt(emotion, vad, FakeServer(1))
    assert outputs["prompt"] is emotion
    assert outputs["prompt_s"].shape == (1,)
    assert "prompt" in {tensor.name for tensor in MUSIC_PROMPT.outputs}
