"""What the BLS models compute, with a stand-in for the server: `pytest tests/unit/test_pipeline.py`."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest

from attune_client.protocol.errors import (
    InvalidOption,
    NoSpeech,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    StreamEndedEarly,
)
from attune_client.protocol.models import (
    EMOTION_CLASSIFIER,
    MUSIC_GENERATOR,
    MUSIC_PROMPT,
    MUSIC_THERAPY,
    NEXT_PART,
    SPEECH_EMOTION,
)
from attune_client.protocol.stages import STAGES
from attune_client.protocol.tensors import bytes_tensor
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.pipeline import Rules, play_therapy, recognise_speech, write_prompt
from attune_ensemble.speech.choice import EmotionChoice
from attune_ensemble.speech.crisis import crisis_tensors
from attune_ensemble.speech.overall import overall_vad

LABELS = [f"emotion {i}" for i in range(40)]
AUDIO = np.array([b"a recording"], dtype=np.object_)
RULES = Rules(LABELS, crisis_tensors)


class FakeServer:
    """Answers as the models would, and remembers the calls: VAD of a segment is its number, 0, 1, 2 ..."""

    def __init__(self, num_segments: int, words: str = "word{}") -> None:
        self.num_segments = num_segments
        self.words = words
        self.calls: list[tuple[str, dict[str, np.ndarray]]] = []
        self.contexts: list[CallContext] = []

    def __call__(self, model, inputs, *, context):
        context.check(model)
        self.calls.append((model, dict(inputs)))
        self.contexts.append(context)
        return getattr(self, model)(inputs)

    def speech_to_text(self, inputs):
        count = self.num_segments
        return {
            "waveform": np.arange(count, dtype=np.float32)[:, None].repeat(16_000, axis=1),
            "num_samples": np.full((count, 1), 16_000, np.int64),
            "start_s": np.arange(count, dtype=np.float32),
            "end_s": np.arange(count, dtype=np.float32) + 1,
            "transcript": np.array([[self.words.format(i).encode()] for i in range(count)], dtype=np.object_),
            "language": np.array([b"en"], dtype=np.object_),
            "language_probability": np.array([0.9], np.float32),
        }

    def emotion_recognition(self, inputs):
        assert len(inputs["waveform"]) == len(inputs["num_samples"]) == len(inputs["transcript"]) <= 16
        return {"vad": inputs["waveform"][:, :3]}

    def emotion_classifier(self, inputs):
        rows = len(inputs["valence"])
        assert rows <= EMOTION_CLASSIFIER.max_batch_size
        assert inputs["valence"].shape == (rows, 1)
        assert inputs["arousal_dominance"].shape == (rows, 2)
        certain = np.eye(40, dtype=np.float32)[inputs["valence"][:, 0].astype(int) % 40]
        return {"emotion_probabilities": certain, "expected_probabilities": 0.5 * certain + 0.5 / 40}

    def text_tokenizer(self, inputs):
        self.texts = [text.decode() for text in inputs["transcript"][:, 0]]
        rows = {"sentence_ids": np.arange(len(self.texts))[:, None], "sentence_mask": np.ones((len(self.texts), 1))}
        return rows | {"input_ids": np.zeros((len(self.texts), 1)), "attention_mask": np.zeros((len(self.texts), 1))}

    def sentence_encoder(self, inputs):
        """The direction of a text that says glad is the first one, that of all others the second."""
        assert set(inputs) == {"sentence_ids", "sentence_mask"}
        glad = np.array(["glad" in text for text in self.texts])
        embeddings = np.zeros((len(glad), 384), np.float32)
        embeddings[np.arange(len(glad)), np.where(glad, 0, 1)] = 1.0
        return {"embedding": embeddings}

    def music_prompt(self, inputs):
        return {"prompt": bytes_tensor(*sorted(inputs)), "music_spec": bytes_tensor("{}")}


def test_one_batch_carries_all_segments_of_two_minutes():
    server = FakeServer(16)
    outputs = recognise_speech(AUDIO, RULES, server, context=UNLIMITED)
    assert [name for name, _ in server.calls] == ["speech_to_text", "emotion_recognition", "emotion_classifier"]
    assert outputs["segment_vad"].shape == (16, 3)


def test_a_long_narration_goes_in_small_batches_and_no_further_one_is_begun_for_nobody():
    server = FakeServer(37)
    whole = recognise_speech(AUDIO, RULES, server, context=UNLIMITED)
    small = FakeServer(37)
    outputs = recognise_speech(AUDIO, replace(RULES, segments_per_call=4), small, context=UNLIMITED)
    np.testing.assert_array_equal(outputs["segment_vad"], whole["segment_vad"])
    sizes = [len(inputs["waveform"]) for name, inputs in small.calls if name == "emotion_recognition"]
    assert sizes == [4] * 9 + [1]
    given_up = FakeServer(37)
    context = CallContext(is_cancelled=lambda: len(given_up.calls) > 2)  # during the second batch
    with pytest.raises(RequestCancelled):
        recognise_speech(AUDIO, replace(RULES, segments_per_call=4), given_up, context=context)
    assert [name for name, _ in given_up.calls] == ["speech_to_text", "emotion_recognition", "emotion_recognition"]


def choice(words_exponent=1.0, unsure_below=0.3):
    """Words that say glad mean emotion 39; others mean nothing."""
    weights = np.zeros((40, 384), np.float32)
    weights[39, 0] = 20.0
    return EmotionChoice(tuple(LABELS), weights, np.zeros(40, np.float32), 1.0, words_exponent, unsure_below)


def test_words_choose_within_what_vad_leaves_open():
    rules = Rules(LABELS, crisis_tensors, choice())
    plain = recognise_speech(AUDIO, RULES, FakeServer(2), context=UNLIMITED)
    outputs = recognise_speech(AUDIO, rules, FakeServer(2, "so glad {}"), context=UNLIMITED)
    assert outputs["emotion"].tolist() == [b"emotion 39"]
    assert outputs["segment_emotion"].tolist() == [b"emotion 39"] * 2
    assert outputs["emotion_probabilities"].sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(outputs["vad"], plain["vad"])  # words change the choice alone
    quiet = recognise_speech(AUDIO, rules, FakeServer(2), context=UNLIMITED)
    assert quiet["emotion"].tolist() == plain["emotion"].tolist()


def test_each_segment_is_embedded_once_and_silence_is_not():
    server = FakeServer(2)
    server.speech_to_text = lambda inputs: (
        FakeServer.speech_to_text(server, inputs) | {"transcript": np.array([[b"so glad"], [b""]], dtype=np.object_)}
    )
    outputs = recognise_speech(AUDIO, Rules(LABELS, crisis_tensors, choice()), server, context=UNLIMITED)
    assert server.texts == ["so glad"]
    assert outputs["segment_emotion"].tolist() == [b"emotion 39", b"emotion 1"]
    assert outputs["emotion"].tolist() == [b"emotion 39"]  # the words of the whole are those of its only words


def test_the_words_of_the_whole_are_those_of_all_segments():
    """Too long to be embedded together, with what matters at its end."""
    server = FakeServer(40)
    texts = np.array([[b"one thing and another"]] * 39 + [[b"so glad"]], dtype=np.object_)
    server.speech_to_text = lambda inputs: FakeServer.speech_to_text(server, inputs) | {"transcript": texts}
    rules = Rules(LABELS, crisis_tensors, choice(words_exponent=30.0))
    outputs = recognise_speech(AUDIO, rules, server, context=UNLIMITED)
    assert outputs["emotion"].tolist() == [b"emotion 39"]


def test_speech_without_words_is_chosen_by_vad_alone():
    server = FakeServer(2, "")
    outputs = recognise_speech(AUDIO, Rules(LABELS, crisis_tensors, choice()), server, context=UNLIMITED)
    assert "sentence_encoder" not in [name for name, _ in server.calls]
    assert outputs["segment_emotion"].tolist() == [b"emotion 0", b"emotion 1"]


@pytest.mark.parametrize(("unsure_below", "expected"), [(0.4, 0), (0.9, 1)])
def test_an_answer_says_whether_it_is_unsure(unsure_below, expected):
    """Half of the probability is the chosen emotion's, and a fortieth of the other half."""
    rules = Rules(LABELS, crisis_tensors, choice(0.0, unsure_below))
    assert recognise_speech(AUDIO, rules, FakeServer(1), context=UNLIMITED)["emotion_unsure"].tolist() == [expected]
    assert recognise_speech(AUDIO, RULES, FakeServer(1), context=UNLIMITED)["emotion_unsure"].tolist() == [0]


def test_longer_narrations_take_several_batches_and_lose_nothing():
    outputs = recognise_speech(AUDIO, RULES, FakeServer(37), context=UNLIMITED)
    np.testing.assert_array_equal(outputs["segment_vad"][:, 0], np.arange(37))
    np.testing.assert_allclose(outputs["vad"], overall_vad(outputs["segment_vad"], [16_000] * 37))
    assert outputs["transcript"][0].decode().split() == [f"word{i}" for i in range(37)]


def test_outputs_are_those_of_the_model_and_the_emotion_is_the_most_probable():
    outputs = recognise_speech(AUDIO, RULES, FakeServer(2), context=UNLIMITED)
    assert set(outputs) == {tensor.name for tensor in SPEECH_EMOTION.outputs}
    assert outputs["emotion"].tolist() == [b"emotion 0"]  # the mean of 0 and 1 is a half
    assert outputs["segment_emotion"].tolist() == [b"emotion 0", b"emotion 1"]
    assert outputs["emotion_labels"].tolist() == [label.encode() for label in LABELS]
    for tensor in SPEECH_EMOTION.outputs:
        assert outputs[tensor.name].ndim == len(tensor.shape), tensor.name


def test_words_of_a_crisis_are_told_with_their_place():
    quiet = recognise_speech(AUDIO, RULES, FakeServer(2), context=UNLIMITED)
    assert (quiet["crisis_kind"].shape, quiet["crisis_place"].shape) == ((0,), (0, 4))
    assert quiet["crisis_place"].dtype == np.int32
    outputs = recognise_speech(AUDIO, RULES, FakeServer(2, "{} times I said: I want to die."), context=UNLIMITED)
    assert outputs["crisis_kind"].tolist() == [b"suicide", b"suicide"]
    texts = [text.decode() for text in outputs["segment_transcript"]]
    for segment, start, last_segment, end in outputs["crisis_place"].tolist():
        assert segment == last_segment
        assert texts[segment][start:end] == "want to die"
    assert outputs["crisis_place"][:, 0].tolist() == [0, 1]


def test_words_of_a_crisis_leave_the_emotion_as_it_was_heard():
    quiet = recognise_speech(AUDIO, RULES, FakeServer(3), context=UNLIMITED)
    outputs = recognise_speech(AUDIO, RULES, FakeServer(3, "I want to die."), context=UNLIMITED)
    for name in ("vad", "emotion", "emotion_probabilities", "segment_vad", "segment_emotion"):
        np.testing.assert_array_equal(outputs[name], quiet[name])


def test_what_becomes_of_other_languages_is_passed_on():
    server, option = FakeServer(1), np.array([b"voice"], dtype=np.object_)
    recognise_speech(AUDIO, RULES, server, context=UNLIMITED)
    recognise_speech(AUDIO, RULES, server, option, context=UNLIMITED)
    asked = [inputs for name, inputs in server.calls if name == "speech_to_text"]
    assert [set(inputs) for inputs in asked] == [{"audio"}, {"audio", "other_languages"}]
    assert asked[1]["other_languages"] is option


def test_the_whole_is_that_of_the_served_rule():
    class Uneven(FakeServer):
        def speech_to_text(self, inputs):
            return super().speech_to_text(inputs) | {"num_samples": np.array([[16_000], [48_000], [8_000]])}

    outputs = recognise_speech(AUDIO, RULES, Uneven(3), context=UNLIMITED)
    expected = overall_vad(outputs["segment_vad"], [16_000, 48_000, 8_000])
    np.testing.assert_array_equal(outputs["vad"], expected)
    assert expected[0] != pytest.approx(1.0)  # not the mean of 0, 1 and 2


def test_an_error_of_a_model_is_the_callers():
    def call(model, inputs, *, context):
        raise NoSpeech("none")

    with pytest.raises(NoSpeech):
        recognise_speech(AUDIO, RULES, call, context=UNLIMITED)


def test_more_segments_than_the_classifier_takes_each_have_their_emotion():
    outputs = recognise_speech(AUDIO, RULES, FakeServer(300), context=UNLIMITED)
    assert outputs["segment_emotion"].tolist() == [f"emotion {i % 40}".encode() for i in range(300)]


def test_the_prompt_comes_with_its_time():
    outputs = write_prompt({"text": bytes_tensor("serene")}, FakeServer(1), context=UNLIMITED)
    assert outputs["prompt"].tolist() == [b"text"]
    assert outputs["prompt_s"].shape == (1,)
    assert "prompt" in {tensor.name for tensor in MUSIC_PROMPT.outputs}


# --- music_therapy ---

VAD = np.array([3.0, 2.0, 3.0], np.float32)


class FakeGenerator:
    """Announces, then plays `seconds` of music at 10 Hz; a theremin it has not."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[dict[str, np.ndarray]] = []
        self.contexts: list[CallContext] = []
        self.closed = 0

    def __call__(self, model, inputs, *, context):
        assert model == "music_generator"
        assert {tensor.name for tensor in MUSIC_GENERATOR.inputs} >= set(inputs)
        self.asked.append(inputs)
        self.contexts.append(context)
        if inputs.get("engine", [b""])[0] == b"theremin":
            raise InvalidOption("no theremin")
        announcement = {"engine": bytes_tensor("counter"), "sample_rate": np.array([10])}
        drawn = {"seed": np.array([11]), "duration_s": np.array([2.0], np.float32)}
        try:
            yield announcement | drawn | {name: inputs[name] for name in drawn if name in inputs}
            for _ in range(0 if "check_only" in inputs else round(self.seconds)):
                yield {"music": np.zeros((10, 2))}
        finally:
            self.closed += 1


def therapy(seconds=2.0, server=None, context=UNLIMITED, **inputs):
    server, generator = server or FakeServer(2), FakeGenerator(seconds)
    return play_therapy(inputs, RULES, server, generator, context=context), server, generator


def test_therapy_tells_everything_first_and_closes_the_music():
    responses, _server, generator = therapy(audio=AUDIO, seed=np.array([3]))
    first = next(responses)
    later = {"music", NEXT_PART.name}
    assert set(first) | later | {"retrieved_emotion", "similarity", "description", "prompt_writer"} == {
        tensor.name for tensor in MUSIC_THERAPY.outputs
    }
    check, played = generator.asked
    assert check["check_only"].tolist() == [1]
    assert set(played) == {"prompt", "music_spec", "seed", "duration_s", "engine"}
    assert set(next(responses)) == {"music"}
    responses.close()
    assert generator.closed == 2


def test_nobody_keeps_the_recording_while_its_music_is_listened_to():
    audio = np.array([b"a recording"], dtype=np.object_)
    recording = weakref.ref(audio)
    server = FakeServer(2)
    responses, _server, _generator = therapy(server=server, audio=audio)
    del audio
    assert recording() is not None
    next(responses)
    server.calls.clear()  # which remembers the inputs
    assert recording() is None
    responses.close()


@pytest.mark.parametrize("words", ["{} word", "I want to die."])
def test_music_is_gentle_where_words_speak_of_a_crisis(words):
    server = FakeServer(2, words)
    responses, _server, _generator = therapy(server=server, audio=AUDIO)
    first, *_ = responses
    [asked] = [inputs for name, inputs in server.calls if name == "music_prompt"]
    gentle = {"gentle"} if "die" in words else set()
    assert set(asked) == {"emotion", "vad"} | gentle
    assert all(asked[name].tolist() == [1] for name in gentle)
    # What was heard is told as it is, and what is played follows from it in music_prompt.
    np.testing.assert_array_equal(first["vad"], overall_vad([[0.0] * 3, [1.0] * 3], [16_000] * 2))
    np.testing.assert_array_equal(asked["vad"], first["vad"])
    assert first["emotion"].tolist() == asked["emotion"].tolist() == [b"emotion 0"]
    assert len(first["crisis_kind"]) == 2 * len(gentle)


def test_a_text_is_looked_through_as_well_but_not_the_prompt_beside_a_specification():
    words = bytes_tensor("  I want to die.  ")
    responses, _server, _generator = therapy(text=words)
    first, *_ = responses
    assert first["prompt"].tolist() == [b"gentle", b"text"]
    assert (first["crisis_kind"].tolist(), first["crisis_place"].tolist()) == ([b"suicide"], [[0, 2, 0, 13]])
    responses, _server, _generator = therapy(text=words, music_spec=bytes_tensor("{}"))
    first, *_ = responses
    assert first["prompt"].tolist() == [b"music_spec", b"text"]
    assert "crisis_kind" not in first


def test_a_text_that_is_too_long_is_refused_before_it_is_looked_through():
    looked: list[object] = []
    rules = Rules(LABELS, lambda texts: looked.append(texts) or {})
    inputs = {"text": bytes_tensor("x" * 2_001)}
    with pytest.raises(InvalidOption, match="2,000 characters"):
        next(play_therapy(inputs, rules, FakeServer(1), FakeGenerator(2.0), context=UNLIMITED))
    assert looked == []


def test_a_recording_passes_through_the_stages_that_clients_show():
    responses, server, generator = therapy(audio=AUDIO)
    list(responses)
    played = ["music_generator" for asked in generator.asked if "check_only" not in asked]
    called = [name for name, _ in server.calls] + played
    assert called == [model.name for stage in STAGES for model in stage.models]


def test_what_was_drawn_and_chosen_is_what_plays_and_what_is_told():
    responses, _server, generator = therapy(audio=AUDIO)
    first, *_ = responses
    played = generator.asked[1]
    for name, value in {"seed": 11, "duration_s": 2.0, "engine": b"counter"}.items():
        assert first[name].tolist() == played[name].tolist() == [value]


def test_an_option_that_the_engine_does_not_take_costs_no_transcription():
    responses, server, _generator = therapy(audio=AUDIO, engine=bytes_tensor("theremin"))
    with pytest.raises(InvalidOption, match="no theremin"):
        next(responses)
    assert server.calls == []


def test_every_stage_works_in_the_context_of_the_request():
    context = CallContext.within(60.0)
    responses, server, generator = therapy(context=context, audio=AUDIO)
    list(responses)
    assert len(server.contexts) == 4
    assert len(generator.contexts) == 2
    assert all(handed_on is context for handed_on in server.contexts + generator.contexts)


@pytest.mark.parametrize("stages", range(4))
def test_no_stage_begins_when_the_request_is_over(stages):
    """What is cancelled, or comes to its deadline, while a stage is at work, is noticed before the next one."""
    server = FakeServer(1)
    context = CallContext(is_cancelled=lambda: len(server.calls) == stages)
    responses, _server, generator = therapy(server=server, context=context, audio=AUDIO)
    with pytest.raises(RequestCancelled):
        list(responses)
    names = ["speech_to_text", "emotion_recognition", "emotion_classifier", "music_prompt"]
    assert [name for name, _ in server.calls] == names[:stages]
    assert len(generator.asked) == 1  # for its choices; it plays nothing


def test_a_request_without_time_ends_as_timed_out():
    with pytest.raises(RequestTimeout, match="before speech_to_text was done"):
        recognise_speech(AUDIO, RULES, FakeServer(1), context=CallContext.within(0.0))


@pytest.mark.parametrize("seconds", [0, 1])
def test_music_that_ends_early_is_an_error(seconds):
    responses, _server, _generator = therapy(seconds, audio=AUDIO)
    with pytest.raises(StreamEndedEarly, match=rf"{seconds}\.0 s of 2 s"):
        list(responses)


@pytest.mark.parametrize("silent_from", [0, 1])
def test_a_generator_that_says_nothing_is_an_error(silent_from):
    generator, asked = FakeGenerator(2.0), []

    def call_stream(model, inputs, *, context):
        asked.append(model)
        yield from () if len(asked) > silent_from else generator(model, inputs, context=context)

    with pytest.raises(ServerError, match=r"announced nothing|before it began"):
        next(play_therapy({"audio": AUDIO}, RULES, FakeServer(2), call_stream, context=UNLIMITED))


@pytest.mark.parametrize(
    ("inputs", "searched", "told"),
    [
        ({"text": bytes_tensor("rain")}, [b"text"], set()),
        ({"emotion": bytes_tensor("Emotion 3")}, [b"emotion"], {"emotion"}),
        ({"emotion": bytes_tensor("emotion 3"), "vad": VAD}, [b"emotion", b"vad"], {"emotion", "vad"}),
        ({"vad": VAD}, [b"emotion", b"vad"], {"emotion", "vad", "emotion_probabilities", "emotion_labels"}),
        ({"music_spec": bytes_tensor("{}")}, [b"music_spec"], set()),
        ({"music_spec": bytes_tensor("{}"), "text": bytes_tensor("rain")}, [b"music_spec", b"text"], set()),
    ],
)
def test_a_wish_needs_no_recording(inputs, searched, told):
    responses, server, _generator = therapy(**inputs)
    first, *_ = responses
    assert "speech_to_text" not in [name for name, _ in server.calls]
    assert first["prompt"].tolist() == searched
    assert {"transcript", "emotion", "vad", "emotion_probabilities", "emotion_labels"} & set(first) == told
    if "emotion" in told:
        assert first["emotion"].tolist() == [b"emotion 3"]


def test_an_unknown_emotion_is_refused_before_anything_is_asked():
    responses, server, _generator = therapy(emotion=bytes_tensor("emotion x"))
    with pytest.raises(InvalidOption, match=r"'emotion x' is not one of the 40 emotions \(perhaps emotion"):
        next(responses)
    assert server.calls == []


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"audio": AUDIO, "text": bytes_tensor("rain")},
        {"audio": AUDIO, "vad": VAD},
        {"text": bytes_tensor("rain"), "emotion": bytes_tensor("calm")},
        {"music_spec": bytes_tensor("{}"), "vad": VAD},
    ],
)
def test_no_source_and_two_are_refused(inputs):
    responses, server, generator = therapy(**inputs)
    with pytest.raises(InvalidOption, match="give one of audio, text, emotion, vad and music_spec"):
        next(responses)
    assert server.calls == generator.asked == []


@pytest.mark.parametrize("vad", [[0.0, 3.0, 3.0], [np.nan, 3.0, 3.0]])
def test_a_vad_off_its_scale_is_refused(vad):
    responses, _server, _generator = therapy(vad=np.array(vad, np.float32))
    with pytest.raises(InvalidOption, match="between 1 and 5"):
        next(responses)


@pytest.mark.parametrize("sum_", [0.0, 0.9, 2.0, np.nan])
def test_probabilities_that_do_not_add_up_are_an_error(sum_):
    server = FakeServer(1)
    server.emotion_classifier = lambda inputs: {"emotion_probabilities": np.eye(40, dtype=np.float32)[7:8] * sum_}
    with pytest.raises(ServerError, match="add up to"):
        recognise_speech(AUDIO, RULES, server, context=UNLIMITED)
