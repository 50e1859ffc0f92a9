"""Families of the emotions: those that people would call nearly the same, though they may lie in different octants.

The groups follow Shaver et al. (1987), "Emotion knowledge": joy, love, surprise, anger, sadness (shame among it) and
fear, with frustration under anger and longing under love. What that study has no group for, for it asked about strong
feelings, has one of its own here: calm, strength, disgust (with contempt) and withdrawal. Changing a family changes
what earlier figures mean.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["FAMILIES", "TOLD_APART", "family_of", "unplaced"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "joy": ("excited", "happy", "triumphant", "hopeful", "expectant"),
    "strength": ("determined", "confident"),
    "wonder": ("surprised", "awed"),
    "love": ("infatuated", "moved", "grateful", "tender", "nostalgic", "trusting"),
    "calm": ("content", "calm", "composed", "dreamy", "sleepy"),
    "anger": ("furious", "angry", "defiant", "impatient", "frustrated"),
    "disgust": ("disgusted", "contemptuous", "cynical"),
    "fear": ("terrified", "fearful", "anxious", "overwhelmed"),
    "withdrawal": ("sullen", "indifferent", "guarded"),
    "sadness": ("grieving", "ashamed", "sad", "lonely", "weary"),
}
"""Every emotion of the knowledge base is in exactly one family; a test holds it."""

TOLD_APART = ("fear", "sadness", "anger")
"""The families that the nearest anchor has to tell from one another."""

_FAMILY_OF = {label: family for family, labels in FAMILIES.items() for label in labels}


def family_of(label: str) -> str:
    """Return the family of an emotion; one that has no place here is a family by itself."""
    return _FAMILY_OF.get(label, label)


def unplaced(labels: Sequence[str]) -> list[str]:
    """Return the labels that are in no family."""
    return [label for label in labels if label not in _FAMILY_OF]
