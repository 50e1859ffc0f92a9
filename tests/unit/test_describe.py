"""What `music_prompt` answers, with a stand-in index: `pytest tests/unit/test_describe.py`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.models import MUSIC_PROMPT, TEXT_TOKENIZER
from attune_client.protocol.music_spec import MusicSpec
from attune_client.protocol.tensors import bytes_tensor, decode
from attune_ensemble.call import UNLIMITED, CallContext
from attune_ensemble.prompting.describe import MusicDescriber
from attune_ensemble.prompting.gentle import gentle_emotions
from attune_ensemble.prompting.knowledge import KnowledgeError, load_emotions
from attune_ensemble.prompting.retrieval import Retrieved
from attune_ensemble.prompting.specification import music_spec
from attune_ensemble.prompting.writers.template import TemplatePromptWriter
from attune_ensemble.prompting.writers.writer import Material, Prompt, Summary

EMOTIONS = load_emotions()
EMOTION = EMOTIONS[17]
BY_LABEL = {emotion.label: emotion for emotion in EMOTIONS}
YES = np.array([1], np.int32)


class FakeIndex:
    """Finds one emotion, or the last of those among which it must be, and remembers where it was to search."""

    def search(self, embedding, octant, among=None):
        assert embedding.shape == (384,)
        self.octant, self.among = octant, among
        found = EMOTION if among is None else BY_LABEL[among[-1]]
        return Retrieved(found, 0.5, Summary("Stored.", "bart"))


class FakeEncoder:
    """Stands for `text_tokenizer` and `sentence_encoder`, and remembers the text."""

    def __call__(self, model, inputs, *, context):
        if model == "text_tokenizer":
            self.text = decode(inputs["transcript"][0, 0])
            return {tensor.name: np.ones((1, 16), np.int64) for tensor in TEXT_TOKENIZER.outputs}
        assert set(inputs) == {"sentence_ids", "sentence_mask"}
        return {"embedding": np.zeros((1, 384), np.float32)}


@pytest.fixture
def index():
    return FakeIndex()


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture
def describe(index, encoder):
    describer = MusicDescriber(EMOTIONS, index, TemplatePromptWriter())
    return lambda **inputs: describer.describe(inputs, encoder, context=UNLIMITED)


def test_an_emotion_is_searched_for_in_its_octant(describe, index, encoder):
    outputs = describe(emotion=bytes_tensor(EMOTION.label), vad=np.array([3, 3, 3], np.float32))
    assert set(outputs) == {tensor.name for tensor in MUSIC_PROMPT.outputs}
    assert index.octant == EMOTION.octant
    assert encoder.text == f"{EMOTION.label} music for a {EMOTION.label} mood"
    assert (outputs["retrieved_emotion"], outputs["similarity"]) == (EMOTION.label, [0.5])
    assert json.loads(outputs["music_spec"])["mode"] == EMOTION.mode


def test_free_text_is_searched_for_everywhere(describe, index, encoder):
    describe(text=bytes_tensor("  rain on the window  "))
    assert index.octant is None
    assert encoder.text == "rain on the window"


# --- gentle ---


def test_what_is_gentle_follows_from_tempo_and_dynamics():
    gentle = gentle_emotions(EMOTIONS)
    assert 5 <= len(gentle) <= 20
    for emotion in EMOTIONS:
        soft, slow = emotion.dynamics in ("pp", "p"), emotion.tempo_high_bpm <= 72
        assert (emotion in gentle) == (soft and slow), emotion.label
    loud, fast = replace(gentle[0], dynamics="mp"), replace(gentle[0], tempo_high_bpm=73.0)
    assert gentle_emotions([loud, gentle[0], fast]) == (gentle[0],)
    with pytest.raises(KnowledgeError, match="no description is gentle"):
        gentle_emotions([loud, fast])


def test_the_gentle_ones_lie_on_both_sides_of_feeling_and_never_among_the_excited():
    gentle = gentle_emotions(EMOTIONS)
    assert {emotion.octant[0] for emotion in gentle} == {"H", "L"}
    assert all(emotion.anchor[1] < 3 for emotion in gentle)


@pytest.mark.parametrize("emotion", EMOTIONS, ids=lambda emotion: emotion.label)
@pytest.mark.parametrize("vad", [(1.0, 5.0, 5.0), (1.5, 2.0, 2.0), (3.0, 3.0, 3.0), (5.0, 1.0, 3.0)])
def test_gentle_music_is_the_nearest_to_the_vad_as_it_stands(describe, index, emotion, vad):
    outputs = describe(emotion=bytes_tensor(emotion.label), vad=np.array(vad, np.float32), gentle=YES)
    found = BY_LABEL[outputs["retrieved_emotion"]]
    distances = {other.label: math.dist(other.anchor, vad) for other in gentle_emotions(EMOTIONS)}
    assert distances[found.label] == min(distances.values())
    # No arousal makes it faster or louder than it is written, and the prompt is its own.
    spec = json.loads(outputs["music_spec"])
    assert (spec["dynamics"], spec["mode"]) == (found.dynamics, found.mode)
    assert spec["tempo_bpm"] == (found.tempo_low_bpm + found.tempo_high_bpm) / 2
    plain = describe(emotion=bytes_tensor(found.label))
    material = Material(found, None, music_spec(found, None), Summary("Stored.", "bart"), None)
    assert outputs["prompt"] == TemplatePromptWriter().write(material, context=UNLIMITED).text
    assert set(outputs) == set(plain)


def test_without_a_vad_gentle_music_is_nearest_to_the_emotion(describe):
    assert describe(emotion=bytes_tensor("sleepy"), gentle=YES)["retrieved_emotion"] == "sleepy"
    found = BY_LABEL[describe(emotion=bytes_tensor("furious"), gentle=YES)["retrieved_emotion"]]
    assert found in gentle_emotions(EMOTIONS)


def test_a_text_finds_gentle_music_by_its_meaning(describe, index, encoder):
    describe(text=bytes_tensor("a war cry"), gentle=YES)
    assert encoder.text == "a war cry"
    assert index.octant is None
    assert index.among == [emotion.label for emotion in gentle_emotions(EMOTIONS)]


def test_what_is_not_to_be_gentle_is_as_it_would_be(describe, index):
    describe(emotion=bytes_tensor(EMOTION.label), gentle=np.array([0], np.int32))
    assert (index.octant, index.among) == (EMOTION.octant, None)


class FakeWriter:
    """Remembers what it was given."""

    name = "fake"

    def write(self, material, *, context):
        self.material, self.context = material, context
        return Prompt("a prompt", "somebody")


def test_a_writer_gets_the_stored_summary_the_words_and_the_context(index, encoder):
    writer, context = FakeWriter(), CallContext.within(60)
    describer = MusicDescriber(EMOTIONS, index, writer)
    outputs = describer.describe({"text": bytes_tensor(" rain ")}, encoder, context=context)
    assert (outputs["prompt"], outputs["prompt_writer"]) == ("a prompt", "somebody")
    assert (writer.material.emotion, writer.material.words, writer.context) == (EMOTION, "rain", context)
    assert writer.material.summary == Summary("Stored.", "bart")
    describer.describe({"emotion": bytes_tensor(EMOTION.label)}, encoder, context=context)
    assert writer.material.words is None


def test_a_specification_is_taken_as_it_is(describe, encoder):
    spec = MusicSpec(72.0, "dorian", "D", ("piano", "cello"), "mp")
    written = describe(music_spec=bytes_tensor(spec.to_json()))
    assert written["music_spec"] == spec.to_json()
    assert "72 bpm, D Dorian, moderately soft, played on piano and cello" in written["prompt"]
    given = describe(music_spec=bytes_tensor(spec.to_json()), text=bytes_tensor("slow waves"))
    assert (given["prompt"], given["prompt_writer"]) == ("slow waves", "caller")
    for outputs in (written, given):
        assert set(outputs) == {"prompt", "prompt_writer", "music_spec"}
    assert not hasattr(encoder, "text")  # nothing was searched for


@pytest.mark.parametrize("gentle", [{}, {"gentle": YES}])
@pytest.mark.parametrize("name", ["Hopeful", "HOPEFUL", " hopeful "])
def test_an_emotion_may_be_named_in_any_case(describe, name, gentle):
    assert describe(emotion=bytes_tensor(name), **gentle) == describe(emotion=bytes_tensor("hopeful"), **gentle)


def test_a_megabyte_of_emotion_is_not_echoed(describe):
    with pytest.raises(InvalidOption, match="not one of the 40 emotions") as caught:
        describe(emotion=bytes_tensor("x" * 10**6))
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "emotion or text"),
        ({"emotion": bytes_tensor("calm"), "text": bytes_tensor("calm")}, "not both"),
        ({"emotion": bytes_tensor("hangry")}, "'hangry' is not one of the 40 emotions .perhaps angry"),
        ({"emotion": bytes_tensor("zzz")}, "'zzz' is not one of the 40 emotions; the README lists"),
        ({"emotion": bytes_tensor("Hopefull")}, "'Hopefull' is not one of the 40 emotions .perhaps hopeful"),
        ({"text": bytes_tensor(" ")}, "empty"),
        ({"emotion": bytes_tensor("hangry"), "gentle": YES}, "'hangry' is not one of the 40 emotions"),
        ({"gentle": YES}, "emotion or text"),
        ({"text": bytes_tensor("x" * 2_001)}, "2,000 characters"),
        ({"music_spec": bytes_tensor("{}")}, "JSON object"),
        ({"music_spec": bytes_tensor("{}"), "emotion": bytes_tensor("calm")}, "give one of"),
        ({"emotion": bytes_tensor(EMOTION.label), "vad": np.array([0, 3, 3], np.float32)}, "between 1 and 5"),
        ({"emotion": bytes_tensor(EMOTION.label), "vad": np.array([np.nan, 3, 3], np.float32)}, "between 1 and 5"),
    ],
)
def test_requests_that_make_no_sense_say_what_would(describe, inputs, words):
    with pytest.raises(InvalidOption, match=words):
        describe(**inputs)
