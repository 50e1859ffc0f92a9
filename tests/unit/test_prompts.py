"""The musical specification and the prompt made from an emotion and its VAD.

Run: pytest tests/unit/test_prompts.py
"""

from dataclasses import replace

import pytest

from attune_client.protocol.music_spec import DYNAMICS
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.knowledge import Emotion, load_emotions
from attune_ensemble.prompting.specification import music_spec
from attune_ensemble.prompting.writers.template import MAX_SUMMARY_WORDS, TemplatePromptWriter, spoken_key, summarise
from attune_ensemble.prompting.writers.writer import Material, Prompt, Summary

EMOTIONS = {emotion.label: emotion for emotion in load_emotions()}
each_emotion = pytest.mark.parametrize("emotion", EMOTIONS.values(), ids=EMOTIONS)


def written(emotion: Emotion, vad: tuple[float, float, float] | None) -> Prompt:
    """What the template writes; it takes no time, and does without the index's summary."""
    material = Material(emotion, vad, music_spec(emotion, vad), Summary("Somebody else's.", "bart"))
    return TemplatePromptWriter().write(material, context=CallContext.within(0))


def test_golden_prompt():
    anxious = EMOTIONS["anxious"]
    vad = (2.1, 3.6, 2.0)
    assert written(anxious, vad) == Prompt(
        text=(
            "Therapeutic instrumental music for a listener who feels anxious "
            "(valence 2.1, arousal 3.6, dominance 2.0 of 5). "
            "Low valence: sombre and in need of warmth; high arousal: active and energetic; "
            "low dominance: yielding and held. "
            "Even, rolling figures in E Dorian, starting just busy enough to keep company with racing thoughts. "
            "Piano and vibraphone share the motion, strings draw long lines across it, and double bass breathes on "
            "every second bar at an unhurried pace. "
            "76 bpm, E Dorian, soft, played on piano, vibraphone, strings and double bass."
        ),
        writer="template",
    )


def test_without_vad_the_prompt_has_no_scores():
    calm = EMOTIONS["calm"]
    text = written(calm, None).text
    assert text.startswith(
        "Therapeutic instrumental music for a listener who feels calm. High valence: warm and bright; "
        "low arousal: calm and unhurried; moderate dominance: balanced. Slow, open music in D Lydian"
    )
    assert text.endswith("57 bpm, D Lydian, soft, played on piano, flute and warm pad.")


@each_emotion
def test_a_vad_never_contradicts_its_emotion(emotion):
    """The emotion leads: no scale is told to be low where the emotion lies high, nor high where it lies low."""
    for vad in ((1.0, 1.0, 1.0), (5.0, 5.0, 5.0), (1.0, 5.0, 1.0), emotion.anchor):
        text = written(emotion, vad).text.lower()
        for dimension, own in zip(("valence", "arousal", "dominance"), emotion.anchor, strict=True):
            assert f"{'low' if own > 3 else 'high'} {dimension}: " not in text


def test_a_contradicting_vad_is_told_as_moderate_and_any_other_as_it_is():
    assert "feels hopeful (valence 2.5, arousal" in written(EMOTIONS["hopeful"], (1.0, 3.0, 3.0)).text
    assert "feels hopeful (valence 3.2, arousal" in written(EMOTIONS["hopeful"], (3.2, 3.0, 3.0)).text


@each_emotion
def test_every_prompt_is_short_and_the_same_each_time(emotion):
    for vad in (None, (1.0, 1.0, 1.0), emotion.anchor, (5.0, 5.0, 5.0)):
        prompt = written(emotion, vad)
        assert prompt == written(emotion, vad)
        assert 40 <= len(prompt.text.split()) <= 120
        assert emotion.label in prompt.text


@each_emotion
def test_tempo_rises_with_arousal_within_the_range(emotion):
    tempi = [music_spec(emotion, (3.0, 1.0 + step / 10, 3.0)).tempo_bpm for step in range(41)]
    assert tempi == sorted(tempi)
    assert len(set(tempi)) > 5
    assert emotion.tempo_low_bpm <= tempi[0] <= tempi[-1] <= emotion.tempo_high_bpm
    assert music_spec(emotion, None).tempo_bpm == (emotion.tempo_low_bpm + emotion.tempo_high_bpm) / 2
    assert music_spec(emotion, emotion.anchor) == music_spec(emotion, None)


@each_emotion
def test_dynamics_move_one_level_at_most(emotion):
    levels = [DYNAMICS.index(music_spec(emotion, (3.0, 1.0 + step / 10, 3.0)).dynamics) for step in range(41)]
    assert levels == sorted(levels)
    assert all(abs(level - DYNAMICS.index(emotion.dynamics)) <= 1 for level in levels)


@each_emotion
def test_the_rest_of_the_spec_is_the_entry(emotion):
    spec = music_spec(emotion, (1.0, 5.0, 1.0))
    assert (spec.mode, spec.tonic, spec.instruments) == (emotion.mode, emotion.tonic, emotion.instruments)


def test_arousal_makes_it_softer_or_louder():
    sad = EMOTIONS["sad"]  # arousal 2.1, p
    assert [music_spec(sad, (2.0, arousal, 2.0)).dynamics for arousal in (1.3, 1.4, 2.8, 2.9)] == ["pp", "p", "p", "mp"]
    furious = replace(EMOTIONS["furious"], anchor=(1.5, 3.1, 3.8))
    assert music_spec(furious, (1.5, 5.0, 4.0)).dynamics == "f", "nothing is louder than f"


def test_the_summary_is_whole_sentences_within_its_limit():
    long = "One " + "word " * (MAX_SUMMARY_WORDS - 3) + "here."
    assert summarise(f"{long} Two.") == Summary(f"{long} Two.", "template")
    assert summarise(f"{long} Two more. Three.").text == long
    assert summarise("word " * 60 + "end. Next.").text == "word " * 60 + "end."


def test_keys_are_spoken_as_musicians_do():
    spec = music_spec(EMOTIONS["sad"], None)
    keys = {("Eb", "ionian"): "E flat major", ("C#", "dorian"): "C sharp Dorian", ("B", "aeolian"): "B minor"}
    for (tonic, mode), spoken in keys.items():
        assert spoken_key(replace(spec, tonic=tonic, mode=mode)) == spoken
