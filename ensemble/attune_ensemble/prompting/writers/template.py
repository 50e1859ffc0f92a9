"""The template writer: builds the structured prompt from a template (paper, section III-F)."""

from __future__ import annotations

import re

from attune_client.protocol.bounds import NEUTRAL_VAD
from attune_client.protocol.music_spec import MusicSpec
from attune_ensemble.call import CallContext
from attune_ensemble.prompting.specification import Vad
from attune_ensemble.prompting.writers.writer import TEMPLATE, Material, Prompt, Summary

__all__ = [
    "TemplatePromptWriter",
    "specification_prompt",
    "spoken_instrument",
    "spoken_key",
    "structured_prompt",
    "summarise",
]

MAX_SUMMARY_WORDS = 45
"""Maximum length in words of the summary of a description."""

_LOW_BELOW, _HIGH_ABOVE = 2.5, 3.5
_ANNOTATIONS = {
    "valence": {"low": "sombre and in need of warmth", "moderate": "even-tempered", "high": "warm and bright"},
    "arousal": {"low": "calm and unhurried", "moderate": "awake and steady", "high": "active and energetic"},
    "dominance": {"low": "yielding and held", "moderate": "balanced", "high": "firm and assured"},
}
_SPOKEN_MODES = {"ionian": "major", "aeolian": "minor"}
_SPOKEN_DYNAMICS = {"pp": "very soft", "p": "soft", "mp": "moderately soft", "mf": "moderately loud", "f": "loud"}
_SPOKEN_INSTRUMENTS = {
    "nylon_guitar": "nylon-string guitar",
    "steel_guitar": "steel-string guitar",
    "contrabass": "double bass",
    "french_horn": "French horn",
    "choir": "wordless choir",
}


class TemplatePromptWriter:
    """Builds the structured prompt from a template, deterministically."""

    name = TEMPLATE

    def write(self, material: Material, *, context: CallContext) -> Prompt:
        """Write the structured prompt with this writer's own summary, whatever the index has; takes no time."""
        return Prompt(structured_prompt(material, summarise(material.emotion.description).text), self.name)

    def close(self) -> None:
        """Nothing is held."""


def structured_prompt(material: Material, summary: str) -> str:
    """Write emotion, VAD scores, their interpretation, the summary given, and the musical parameters.

    The emotion leads: of a VAD that contradicts it the scores are those nearest to it that do not (`_beside`).
    """
    emotion = material.emotion
    vad = None if material.vad is None else _beside(emotion.anchor, material.vad)
    sentences = (
        f"Therapeutic instrumental music for a listener who feels {emotion.label}{_scores(vad)}.",
        _interpretation(emotion.anchor if vad is None else vad),
        summary,
        _parameters(material.spec),
    )
    return " ".join(sentences)


def specification_prompt(spec: MusicSpec) -> Prompt:
    """Return the prompt of a music specification given by the caller."""
    return Prompt(f"Therapeutic instrumental music. {_parameters(spec)}", TEMPLATE)


def _beside(anchor: Vad, vad: Vad) -> Vad:
    """Return the VAD, at most moderate where it lies on the other side of the middle than the emotion's anchor."""
    valence, arousal, dominance = (
        max(value, _LOW_BELOW) if own > NEUTRAL_VAD else min(value, _HIGH_ABOVE)
        for own, value in zip(anchor, vad, strict=True)
    )
    return valence, arousal, dominance


def _scores(vad: Vad | None) -> str:
    if vad is None:
        return ""
    valence, arousal, dominance = vad
    return f" (valence {valence:.1f}, arousal {arousal:.1f}, dominance {dominance:.1f} of 5)"


def _interpretation(vad: Vad) -> str:
    """Describe the VAD scores in musical terms, in one sentence."""
    notes = []
    for (dimension, words), value in zip(_ANNOTATIONS.items(), vad, strict=True):
        level = "low" if value < _LOW_BELOW else "high" if value > _HIGH_ABOVE else "moderate"
        notes.append(f"{level} {dimension}: {words[level]}")
    return f"{'; '.join(notes).capitalize()}."


def summarise(description: str) -> Summary:
    """Return the first sentences of a description, up to `MAX_SUMMARY_WORDS`; always at least one."""
    first, *others = re.split(r"(?<=[.!?])\s+", description.strip())
    summary = first
    for sentence in others:
        if len(f"{summary} {sentence}".split()) > MAX_SUMMARY_WORDS:
            break
        summary = f"{summary} {sentence}"
    return Summary(summary, TEMPLATE)


def _parameters(spec: MusicSpec) -> str:
    *others, last = [spoken_instrument(name) for name in spec.instruments]
    instruments = f"{', '.join(others)} and {last}" if others else last
    dynamics = _SPOKEN_DYNAMICS[spec.dynamics]
    return f"{spec.tempo_bpm:.0f} bpm, {spoken_key(spec)}, {dynamics}, played on {instruments}."


def spoken_instrument(name: str) -> str:
    """Return the name of an instrument of the music spec in natural language."""
    return _SPOKEN_INSTRUMENTS.get(name, name.replace("_", " "))


def spoken_key(spec: MusicSpec) -> str:
    """Return tonic and mode in natural language: "E flat major", "C sharp Dorian"."""
    tonic = spec.tonic.replace("#", " sharp").replace("b", " flat")
    return f"{tonic} {_SPOKEN_MODES.get(spec.mode, spec.mode.title())}"
