"""Scores of stories and of negations as tables."""

from __future__ import annotations

import math

from attune_training.evaluation.stories.measures import NegationScores, Share, StoryScores

__all__ = ["negations_markdown", "stories_markdown"]


def stories_markdown(scores: StoryScores, num_emotions: int) -> str:
    """Return the table of measures, and that of the dimensions."""
    shares = {
        "right valence side (VAD)": scores.valence_side,
        "right octant (emotion)": scores.octant,
        "right octant (VAD)": scores.vad_octant,
        "right family": scores.family,
        "right emotion": scores.emotion,
    }
    rows = [_share_row(name, share) for name, share in shares.items()]
    rows += [
        f"| emotions used | {scores.used} of {num_emotions} |",
        f"| their entropy | {scores.entropy:.2f} of {math.log2(num_emotions):.2f} bits |",
        f"| most frequent emotion | {scores.most_frequent}, {scores.most_frequent_share:.1%} |",
        f"| fear, sadness, anger by nearest anchor, balanced accuracy | {_told_apart(scores)} |",
        f"| calibration error, emotion | {scores.emotion_calibration:.3f} |",
        f"| calibration error, octant | {scores.octant_calibration:.3f} |",
    ]
    head = [f"| {scores.count} stories | measured [95 %] |", "|---|---|"]
    return "\n".join([*head, *rows, "", *_dimension_rows(scores)])


def negations_markdown(scores: NegationScores) -> str:
    """Return the table of the right sides."""
    shares = {
        "right valence side": scores.valence,
        "where the word by itself lies on the other side": scores.turned,
        "where it lies on the same": scores.kept,
        "right arousal side, where one is clear": scores.arousal,
    }
    rows = [_share_row(name, share) for name, share in shares.items() if share is not None]
    return "\n".join([f"| {scores.valence.count} negations | measured [95 %] |", "|---|---|", *rows])


def _share_row(name: str, share: Share) -> str:
    interval = f"[{share.interval.low:.1%}, {share.interval.high:.1%}]"
    return f"| {name} | {share.share:.1%} {interval}, {share.right} of {share.count} |"


def _told_apart(scores: StoryScores) -> str:
    found = scores.told_apart
    if found is None:
        return "not all three among the stories"
    recall = ", ".join(f"{name} {value:.2f}" for name, value in found.recall.items())
    return f"{found.balanced_accuracy:.3f} ({recall}; {found.count} stories)"


def _dimension_rows(scores: StoryScores) -> list[str]:
    lines = ["| dimension, against the anchors | PCC | CCC | RMSE | spread |", "|---|---|---|---|---|"]
    for name, item in scores.dimensions.items():
        lines.append(f"| {name} | {item.pcc:.3f} | {item.ccc:.3f} | {item.rmse:.3f} | {scores.spread[name]:.2f} |")
    return lines
